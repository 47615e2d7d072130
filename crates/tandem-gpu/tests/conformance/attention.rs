//! Rotary embedding with the KV cache's write, and attention over the cache.

use half::f16;
use tandem_gpu::ops::{Heads, KvRegion, attention_spans};
use tandem_gpu::{Gpu, GpuVec};
use tandem_memory::KvType;
use tandem_testkit::Rng;
use tandem_testkit::oracle::{Attention, assert_close, rope};

use super::{numbers, on_every_gpu};

/// A layer's cache on the device.
struct Cache {
    heads: Heads,
    kind: KvType,
    capacity: usize,
    keys: GpuVec<u8>,
    values: GpuVec<u8>,
}

impl Cache {
    fn new(gpu: &Gpu, heads: Heads, kind: KvType, capacity: usize) -> Self {
        let bytes = heads.kv * capacity * heads.dim * if kind == KvType::F32 { 4 } else { 2 };
        // What was not written must not be looked at: NaN in either format.
        let unwritten = || gpu.upload(&vec![0xffu8; bytes]).unwrap();
        Self { heads, kind, capacity, keys: unwritten(), values: unwritten() }
    }

    /// Rotates and stores, and attends; answers the rotated queries and the result.
    fn run(&mut self, gpu: &Gpu, input: &Input<'_>) -> (Vec<f32>, Vec<f32>) {
        let [angles, k, v] = [&input.angles[..], input.k, input.v].map(|x| gpu.upload(x).unwrap());
        let mut q = gpu.upload(input.q).unwrap();
        let mut out = gpu.upload(&vec![f32::NAN; input.q.len()]).unwrap();
        let mut spans = attention_spans(gpu, self.heads, self.capacity).unwrap();
        gpu.scope(|scope| {
            let keys = scope.vec_mut(&mut self.keys)?;
            let values = scope.vec_mut(&mut self.values)?;
            let kv = KvRegion::new(scope, self.heads, self.kind, keys, values)?;
            let (q, out) = (scope.vec_mut(&mut q)?, scope.vec_mut(&mut out)?);
            let (angles, k, v) = (scope.vec(&angles)?, scope.vec(&k)?, scope.vec(&v)?);
            kv.rope_and_write(scope, &angles, &q, &k, &v, input.start)?;
            let spans = scope.vec_mut(&mut spans)?;
            kv.attention(scope, &q, input.start, input.window, &spans, &out)
        })
        .unwrap();
        (gpu.read(&q).unwrap(), gpu.read(&out).unwrap())
    }

    /// Keys or values of the first positions as the oracle takes them, `[position][kv_head][dim]`.
    fn stored(&self, gpu: &Gpu, from: &GpuVec<u8>, positions: usize) -> Vec<f32> {
        let bytes = gpu.read(from).unwrap();
        let Heads { kv, dim, .. } = self.heads;
        let number = |at: usize| match self.kind {
            KvType::F32 => f32::from_le_bytes(bytes[4 * at..][..4].try_into().unwrap()),
            KvType::F16 => f16::from_le_bytes(bytes[2 * at..][..2].try_into().unwrap()).to_f32(),
            KvType::Q8_0 => unreachable!("there are no kernels for it"),
        };
        let places = (0..positions).flat_map(|p| (0..kv).map(move |h| (p, h)));
        places
            .flat_map(|(p, h)| (0..dim).map(move |i| (h * self.capacity + p) * dim + i))
            .map(number)
            .collect()
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
    let spans = [(0, 1), (0, 17), (5, 1), (63, 3), (255, 2), (700, 1), (1500, 3)];
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(61);
        for (index, &(queries, kv, dim)) in shapes.iter().enumerate() {
            for &(start, tokens) in &spans {
                // Long contexts at every shape would be slow, and are the same code.
                if start > 100 && index > 1 {
                    continue;
                }
                for (window, kind) in [
                    (None, KvType::F16),
                    (None, KvType::F32),
                    (Some(1), KvType::F16),
                    (Some(70), KvType::F32),
                    (Some(600), KvType::F16),
                ] {
                    let heads = Heads { queries, kv, dim };
                    // Room to spare, so that heads lie further apart than the sequence is long.
                    let mut cache = Cache::new(gpu, heads, kind, start + tokens + 3);
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
    let end = start + tokens;
    let keys = cache.stored(gpu, &cache.keys, end);
    let values = cache.stored(gpu, &cache.values, end);
    let row = kv * dim;
    // Half a unit of 11 bits, or of what is below the normal range.
    let step = if cache.kind == KvType::F16 { 1.0 / 2048.0 } else { 0.0 };
    for (token, k) in k.chunks_exact(row).enumerate() {
        let expected: Vec<_> = rope(k, dim, theta, start + token)
            .into_iter()
            .map(|(x, tolerance)| (x, tolerance * (1.0 + step) + x.abs() * step + 3.1e-8))
            .collect();
        assert_close(&format!("{what}: keys"), &keys[(start + token) * row..][..row], &expected);
    }
    let exact = |x: &f32| if cache.kind == KvType::F16 { f16::from_f32(*x).to_f32() } else { *x };
    assert_eq!(values[start * row..], v.iter().map(exact).collect::<Vec<_>>(), "{what}: values");
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

#[test]
fn heads_without_kernels_are_named() {
    on_every_gpu(|what, gpu| {
        for dim in [6, 260] {
            let heads = Heads { queries: 1, kv: 1, dim };
            let mut cache = Cache::new(gpu, heads, KvType::F32, 4);
            gpu.scope(|scope| {
                let (keys, values) =
                    (scope.vec_mut(&mut cache.keys)?, scope.vec_mut(&mut cache.values)?);
                let made = KvRegion::new(scope, heads, KvType::F32, keys, values);
                let message = made.unwrap_err().to_string();
                assert!(message.contains(&format!("heads of {dim}")), "{what}: {message}");
                Ok(())
            })
            .unwrap();
        }
    });
}
