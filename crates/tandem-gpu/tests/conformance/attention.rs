//! Rotary embedding with the KV cache's write, and attention over the cache's pages.

use half::f16;
use tandem_gpu::ops::{Heads, KvPages, KvRegion, PageTable, attention_spans};
use tandem_gpu::{Gpu, GpuVec, Sharing};
use tandem_memory::{KV_BLOCK, KvCache, KvData, KvPool, KvShape, KvType, PAGE_TOKENS};
use tandem_testkit::Rng;
use tandem_testkit::oracle::{Attention, Expected, assert_close, rope};

use super::{numbers, on_every_gpu};

/// The layer that is used, of two.
const LAYER: usize = 1;

/// A cache, and what a device needs of it.
struct Cache {
    heads: Heads,
    kv: KvCache,
    table: PageTable,
    /// The pool, on a device with memory of its own.
    copy: Option<GpuVec<u8>>,
}

impl Cache {
    /// Pages come in random order, and what was not written must not be looked at: it is NaN in every type.
    fn new(gpu: &Gpu, rng: &mut Rng, heads: Heads, kind: KvType, capacity: usize) -> Self {
        // One size for each shape: kernels are compiled for each.
        let page = if heads.dim.is_multiple_of(128) { PAGE_TOKENS } else { 4 };
        let shape = KvShape::new(2, heads.kv, heads.dim, kind).with_page_tokens(page);
        let pages = shape.pages(capacity) + 3;
        let pool = KvPool::new(gpu.memory(), shape, pages * page).unwrap();
        let one = || {
            let mut cache = KvCache::in_pool(&pool, page);
            cache.reserve(page).unwrap();
            cache.page_mut(0).unwrap().fill(0xff);
            cache
        };
        let mut taken: Vec<KvCache> = (0..pages).map(|_| one()).collect();
        while !taken.is_empty() {
            taken.swap_remove(rng.below(taken.len()));
        }
        let copy = (gpu.memory().sharing() == Sharing::None)
            .then(|| gpu.upload(&vec![0xffu8; pool.bytes()]).unwrap());
        let table = PageTable::new(gpu).unwrap();
        Self { heads, kv: KvCache::in_pool(&pool, capacity), table, copy }
    }

    /// Rotates and stores, and attends; answers the rotated queries and the result.
    fn run(&mut self, gpu: &Gpu, input: &Input<'_>) -> (Vec<f32>, Vec<f32>) {
        let [angles, k, v] = [&input.angles[..], input.k, input.v].map(|x| gpu.upload(x).unwrap());
        let mut q = gpu.upload(input.q).unwrap();
        let mut out = gpu.upload(&vec![f32::NAN; input.q.len()]).unwrap();
        let mut spans = attention_spans(gpu, self.heads, self.kv.capacity()).unwrap();
        let tokens = input.q.len() / (self.heads.queries * self.heads.dim);
        self.kv.claim(LAYER, input.start, tokens).unwrap();
        self.table.update(gpu, &self.kv).unwrap();
        let Self { heads, kv, table, copy } = self;
        gpu.scope(|scope| {
            let pages = match copy {
                Some(copy) => KvPages::lend_copy(scope, kv, &scope.vec_mut(copy)?, table)?,
                None => KvPages::lend(scope, kv, table)?,
            };
            let kv = KvRegion::new(scope, *heads, &pages, LAYER)?;
            let (q, out) = (scope.vec_mut(&mut q)?, scope.vec_mut(&mut out)?);
            let (angles, k, v) = (scope.vec(&angles)?, scope.vec(&k)?, scope.vec(&v)?);
            kv.rope_and_write(scope, &angles, &q, &k, &v, input.start)?;
            let spans = scope.vec_mut(&mut spans)?;
            kv.attention(scope, &q, input.start, input.window, &spans, &out)
        })
        .unwrap();
        self.bring_back(gpu);
        (gpu.read(&q).unwrap(), gpu.read(&out).unwrap())
    }

    fn bring_back(&mut self, gpu: &Gpu) {
        let Some(copy) = &self.copy else { return };
        let bytes = gpu.read(copy).unwrap();
        for page in 0..self.kv.pages().len() {
            let index = self.kv.pages()[page].index() as usize;
            let own = self.kv.page_mut(page).unwrap();
            let start = index * own.len();
            own.copy_from_slice(&bytes[start..start + own.len()]);
        }
    }

    /// Keys and values of the first positions as the oracle takes them, `[position][kv_head][dim]`.
    fn stored(&self) -> [Vec<f32>; 2] {
        let layer = self.kv.layer(LAYER);
        let read = |data: KvData<'_>| -> Vec<f32> {
            match data {
                KvData::F32(data) => data.to_vec(),
                KvData::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
                KvData::Q8_0 { quants, scales } => {
                    let scales = scales.iter().flat_map(|scale| [scale.to_f32(); KV_BLOCK]);
                    quants.iter().zip(scales).map(|(q, scale)| f32::from(*q) * scale).collect()
                }
            }
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for position in 0..layer.len() {
            for head in 0..self.heads.kv {
                keys.extend(read(layer.keys(head, position..position + 1)));
                values.extend(read(layer.values(head, position..position + 1)));
            }
        }
        [keys, values]
    }
}

struct Input<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    angles: Vec<f32>,
    start: usize,
    window: Option<usize>,
}

/// Cosine and sine of every pair of every token.
fn angles(dim: usize, theta: f32, start: usize, tokens: usize) -> Vec<f32> {
    let positions = start..start + tokens;
    let pairs = positions.flat_map(|p| (0..dim / 2).map(move |i| (p, i)));
    pairs
        .flat_map(|(p, i)| {
            let inv_freq = 1.0 / theta.powf(2.0 * i as f32 / dim as f32);
            let (sin, cos) = (p as f32 * inv_freq).sin_cos();
            [cos, sin]
        })
        .collect()
}

#[test]
fn every_shape_window_and_storage() {
    // Heads, KV heads, numbers of a head.
    let shapes = [(8, 2, 32), (4, 1, 128), (3, 1, 96), (2, 1, 20), (2, 2, 256)];
    // Prompt, continuation and decode, near and far: the last ones in several spans.
    let spans = [(0, 1), (0, 17), (5, 1), (63, 3), (255, 2), (700, 1), (1100, 3)];
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(61);
        for (index, &(queries, kv, dim)) in shapes.iter().enumerate() {
            for &(start, tokens) in &spans {
                // Long contexts at every shape would be slow, and are the same code.
                if start > 100 && index > 1 {
                    continue;
                }
                for (case, (window, kind)) in [
                    (None, KvType::F16),
                    (None, KvType::F32),
                    (Some(1), KvType::F16),
                    (Some(70), KvType::F32),
                    (Some(600), KvType::F16),
                    (None, KvType::Q8_0),
                    (Some(70), KvType::Q8_0),
                ]
                .into_iter()
                .enumerate()
                {
                    if kind == KvType::Q8_0 && dim % KV_BLOCK != 0 {
                        continue;
                    }
                    // Far positions take long where the device is a CPU: each type once, and once with a window that
                    // begins in the middle of a span.
                    if start > 100 && ![1, 4, 5].contains(&case) {
                        continue;
                    }
                    let heads = Heads { queries, kv, dim };
                    let mut cache = Cache::new(gpu, &mut rng, heads, kind, start + tokens);
                    let what =
                        format!("{what}: {heads:?} {tokens} from {start}, {window:?}, {kind:?}");
                    check(&what, gpu, &mut cache, &mut rng, start, tokens, window);
                }
            }
        }
    });
}

fn check(
    what: &str,
    gpu: &Gpu,
    cache: &mut Cache,
    rng: &mut Rng,
    start: usize,
    tokens: usize,
    window: Option<usize>,
) {
    let Heads { queries, kv, dim } = cache.heads;
    let theta = 10_000.0;
    let mut run = |start: usize, tokens: usize, window| {
        let q: Vec<f32> = numbers(rng, tokens * queries * dim).iter().map(|x| 2.0 * x).collect();
        let k: Vec<f32> = numbers(rng, tokens * kv * dim).iter().map(|x| 2.0 * x).collect();
        let v = numbers(rng, tokens * kv * dim);
        let angles = angles(dim, theta, start, tokens);
        let input = Input { q: &q, k: &k, v: &v, angles, start, window };
        let (rotated, out) = cache.run(gpu, &input);
        (q, k, v, rotated, out)
    };
    if start > 0 {
        run(0, start, Some(1));
    }
    let (q, k, v, rotated, out) = run(start, tokens, window);
    for (token, (q, rotated)) in
        q.chunks_exact(queries * dim).zip(rotated.chunks_exact(queries * dim)).enumerate()
    {
        assert_close(&format!("{what}: rope"), rotated, &rope(q, dim, theta, start + token));
    }
    let [keys, values] = cache.stored();
    let (row, kind) = (kv * dim, cache.kv.kind());
    for (token, (k, v)) in k.chunks_exact(row).zip(v.chunks_exact(row)).enumerate() {
        let place = (start + token) * row..(start + token + 1) * row;
        let rotated = rope(k, dim, theta, start + token);
        assert_close(&format!("{what}: keys"), &keys[place.clone()], &rounded(&rotated, kind));
        let exact: Vec<_> = v.iter().map(|&v| (f64::from(v), 0.0)).collect();
        assert_close(&format!("{what}: values"), &values[place.clone()], &rounded(&exact, kind));
        if kind != KvType::Q8_0 {
            let stored = |&x: &f32| if kind == KvType::F16 { f16::from_f32(x).to_f32() } else { x };
            assert_eq!(values[place], v.iter().map(stored).collect::<Vec<_>>(), "{what}: values");
        }
    }
    let case = Attention {
        q: &rotated,
        k: &keys,
        v: &values,
        heads: queries,
        kv_heads: kv,
        dim,
        start,
        window,
    };
    assert_close(&format!("{what}: attention"), &out, &case.expected((dim / 4 + 16) as f64));
}

/// How far from some numbers may be what is stored of them.
fn rounded(numbers: &[Expected], kind: KvType) -> Vec<Expected> {
    let by = |largest: f64| match kind {
        KvType::F32 => (0.0, 0.0),
        // Half a unit of 11 bits, or of what is below the normal range.
        KvType::F16 => (1.0 / 2048.0, 3.1e-8),
        // Half a step of the block, whose scale has 11 bits.
        KvType::Q8_0 => (1.0 / 2048.0, largest * (0.5 / 127.0) * 1.001 + 1e-7),
    };
    let block = if kind == KvType::Q8_0 { KV_BLOCK } else { 1 };
    let round = |block: &[Expected]| {
        let largest = block.iter().map(|(x, tolerance)| x.abs() + tolerance).fold(0.0, f64::max);
        let (relative, absolute) = by(largest);
        let wider = |&(x, tolerance): &Expected| {
            (x, tolerance * (1.0 + relative) + x.abs() * relative + absolute)
        };
        block.iter().map(wider).collect::<Vec<_>>()
    };
    numbers.chunks(block).flat_map(round).collect()
}

/// A number that is not finite is stored as one, in 8 bits with its whole block, and comes out as one.
#[test]
fn what_is_not_finite_is_not_hidden() {
    on_every_gpu(|what, gpu| {
        let (heads, start, tokens) = (Heads { queries: 2, kv: 1, dim: 64 }, 0, 5);
        for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
            for special in [f32::NAN, f32::INFINITY] {
                let mut rng = Rng::new(62);
                let [q, k] = [2, 1].map(|heads| numbers(&mut rng, tokens * heads * 64));
                let mut v = numbers(&mut rng, tokens * 64);
                v[2 * 64 + 40] = special;
                let angles = angles(64, 10_000.0, start, tokens);
                let input = Input { q: &q, k: &k, v: &v, angles, start, window: None };
                let mut cache = Cache::new(gpu, &mut rng, heads, kind, tokens);
                let (_, out) = cache.run(gpu, &input);
                let finite = |x: &[f32]| x.iter().filter(|x| x.is_finite()).count();
                let lost = if kind == KvType::Q8_0 { KV_BLOCK } else { 1 };
                let [_, values] = cache.stored();
                assert_eq!(finite(&values), tokens * 64 - lost, "{what} {kind:?} {special}");
                // The first two tokens do not see it.
                assert_eq!(finite(&out), tokens * 128 - 3 * 2 * lost, "{what} {kind:?} {special}");
            }
        }
    });
}

#[test]
fn heads_without_kernels_are_named() {
    on_every_gpu(|what, gpu| {
        for dim in [6, 260] {
            let heads = Heads { queries: 1, kv: 1, dim };
            let mut cache = Cache::new(gpu, &mut Rng::new(1), heads, KvType::F32, 4);
            cache.table.update(gpu, &cache.kv).unwrap();
            gpu.scope(|scope| {
                let Cache { kv, table, copy, .. } = &mut cache;
                let pages = match copy {
                    Some(copy) => KvPages::lend_copy(scope, kv, &scope.vec_mut(copy)?, table)?,
                    None => KvPages::lend(scope, kv, table)?,
                };
                let made = KvRegion::new(scope, heads, &pages, LAYER);
                let message = made.unwrap_err().to_string();
                assert!(message.contains(&format!("heads of {dim}")), "{what}: {message}");
                Ok(())
            })
            .unwrap();
        }
    });
}
