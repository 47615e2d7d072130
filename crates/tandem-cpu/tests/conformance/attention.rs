//! Attention over the KV cache.

use tandem_cpu::Cpu;
use tandem_cpu::ops::{Queries, Rope, Sequence, attention, attention_all, store_kv};
use tandem_memory::{KV_BLOCK, KvCache, KvData, KvPool, KvShape, KvType, SystemMemory};
use tandem_testkit::oracle::{Attention, Expected, assert_close};

use super::{Random, on_every_isa};

/// One call, and what the oracle needs to repeat it.
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    start: usize,
    tokens: usize,
    window: Option<usize>,
    kind: KvType,
    /// Largest query and key.
    scale: f32,
}

/// The data of a case.
struct Data {
    q: Vec<f32>,
    /// `[position][kv_head][dim]`, as stored.
    k: Vec<f32>,
    v: Vec<f32>,
    cache: KvCache,
}

/// What the cache holds: exactly, as it has fewer bits than f32. How close that is to what was written is for the cache's
/// own tests.
fn stored(data: KvData<'_>) -> Vec<f32> {
    match data {
        KvData::F32(data) => data.to_vec(),
        KvData::F16(data) => data.iter().map(|x| x.to_f32()).collect(),
        KvData::Q8_0 { quants, scales } => {
            let scales = scales.iter().flat_map(|scale| [scale.to_f32(); KV_BLOCK]);
            quants.iter().zip(scales).map(|(q, scale)| f32::from(*q) * scale).collect()
        }
    }
}

/// An empty cache whose pages come in random order. They are of the usual size, or of a random smaller one, so that runs of
/// memory end anywhere.
fn scattered(random: &mut Random, shape: KvShape, capacity: usize) -> KvCache {
    let sizes = [1, 2, 8, 16, shape.page_tokens, shape.page_tokens, 2 * shape.page_tokens];
    let page = sizes[random.below(sizes.len())];
    let shape = shape.with_page_tokens(page);
    let pages = shape.pages(capacity);
    let pool = KvPool::new(&SystemMemory, shape, (pages + 3) * page).unwrap();
    let one = || {
        let mut cache = KvCache::in_pool(&pool, page);
        cache.reserve(page).unwrap();
        cache
    };
    let mut taken: Vec<KvCache> = (0..pages + 3).map(|_| one()).collect();
    while !taken.is_empty() {
        taken.swap_remove(random.below(taken.len()));
    }
    KvCache::in_pool(&pool, capacity)
}

/// `[position][head][..]` of what is there by heads.
fn by_position(heads: &[Vec<f32>], dim: usize) -> Vec<f32> {
    let positions = heads[0].len() / dim;
    let rows = (0..positions)
        .flat_map(|position| heads.iter().map(move |head| &head[position * dim..][..dim]));
    rows.flatten().copied().collect()
}

impl Case {
    fn data(&self, random: &mut Random) -> Data {
        let count = (self.start + self.tokens) * self.kv_heads * self.dim;
        let mut scaled = |count, scale| -> Vec<f32> {
            random.numbers(count).iter().map(|x| x * scale).collect()
        };
        let (k, v) = (scaled(count, self.scale), scaled(count, 1.0));
        let q = scaled(self.tokens * self.heads * self.dim, self.scale);
        let len = self.start + self.tokens;
        let shape = KvShape::new(2, self.kv_heads, self.dim, self.kind);
        let mut cache = scattered(random, shape, len);
        cache.write(1, 0, &k, &v).unwrap();
        let layer = cache.layer(1);
        let heads = 0..self.kv_heads;
        let runs = layer.runs(0..len);
        let keys = |head| runs.clone().flat_map(|run| stored(layer.keys(head, run))).collect();
        let values = |head| runs.clone().flat_map(|run| stored(layer.values(head, run))).collect();
        let k: Vec<Vec<f32>> = heads.clone().map(keys).collect();
        let v: Vec<Vec<f32>> = heads.map(values).collect();
        let (k, v) = (by_position(&k, self.dim), by_position(&v, self.dim));
        Data { q, k, v, cache }
    }

    fn run(&self, cpu: &Cpu, data: &Data) -> Vec<f32> {
        let mut out = vec![f32::NAN; data.q.len()];
        let queries = Queries { q: &data.q, heads: self.heads, start: self.start, rope: None };
        attention(cpu, queries, data.cache.layer(1), self.window, &mut out);
        out
    }

    /// Dot products may be added up one term after the other.
    fn oracle(&self, data: &Data) -> Vec<Expected> {
        let &Case { heads, kv_heads, dim, start, window, .. } = self;
        let Data { q, k, v, .. } = data;
        Attention { q, k, v, heads, kv_heads, dim, start, window }.expected((dim + 4) as f64)
    }
}

#[test]
fn every_shape_window_and_storage() {
    // Heads, KV heads, numbers of a head.
    let shapes = [(8, 2, 32), (4, 4, 128), (3, 1, 96), (2, 1, 20), (5, 5, 6), (1, 1, 1)];
    // First position and tokens: a prompt, its continuation, decode near and far; more tokens than one block, and keys
    // around the ends of spans.
    let spans = [
        (0, 1),
        (0, 3),
        (0, 17),
        (0, 50),
        (5, 1),
        (60, 10),
        (63, 1),
        (64, 64),
        (254, 1),
        (255, 1),
        (256, 1),
        (510, 1),
        (511, 1),
        (512, 1),
        (1023, 1),
        (255, 2),
        (500, 24),
        (500, 25),
        (1500, 3),
    ];
    on_every_isa(|cpu| {
        let mut random = Random(11);
        for (index, &(heads, kv_heads, dim)) in shapes.iter().enumerate() {
            for &(start, tokens) in &spans {
                for window in [None, Some(1), Some(7), Some(70), Some(512), Some(2047)] {
                    // Long contexts at every shape would be slow, and are the same code.
                    if start > 100 && index > 1 {
                        continue;
                    }
                    for kind in [KvType::F16, KvType::F32, KvType::Q8_0] {
                        if kind == KvType::Q8_0 && dim % KV_BLOCK != 0 {
                            continue;
                        }
                        let case =
                            Case { heads, kv_heads, dim, start, tokens, window, kind, scale: 2.0 };
                        let data = case.data(&mut random);
                        let what = format!(
                            "{} {heads}/{kv_heads} heads of {dim}, {tokens} from {start}, {window:?}, {kind:?}",
                            cpu.isa()
                        );
                        assert_close(&what, &case.run(cpu, &data), &case.oracle(&data));
                    }
                }
            }
        }
    });
}

/// Sequences of every length: some whose keys are cut into spans, some not, decoded tokens and prompts.
#[test]
fn several_sequences_are_as_each_alone() {
    let lengths = [(0, 30), (700, 1), (3, 1), (255, 1), (600, 9), (0, 1), (1300, 1)];
    let window = Some(1200);
    on_every_isa(|cpu| {
        let mut random = Random(17);
        for kind in [KvType::F16, KvType::F32, KvType::Q8_0] {
            let case = |(start, tokens)| Case {
                heads: 8,
                kv_heads: 2,
                dim: 32,
                start,
                tokens,
                window,
                kind,
                scale: 2.0,
            };
            let cases = lengths.map(case);
            let data: Vec<Data> = cases.iter().map(|case| case.data(&mut random)).collect();
            let mut outs: Vec<Vec<f32>> =
                data.iter().map(|data| vec![f32::NAN; data.q.len()]).collect();
            let sequences = cases.iter().zip(&data).zip(&mut outs).map(|((case, data), out)| {
                let queries =
                    Queries { q: &data.q, heads: case.heads, start: case.start, rope: None };
                Sequence { queries, kv: data.cache.layer(1), out }
            });
            attention_all(cpu, &mut sequences.collect::<Vec<_>>(), window);
            for ((case, data), out) in cases.iter().zip(&data).zip(&outs) {
                let what = format!("{} {kind:?} {} from {}", cpu.isa(), case.tokens, case.start);
                assert_close(&what, out, &case.oracle(data));
                assert!(*out == case.run(cpu, data), "{what}: not as alone");
            }
        }
    });
}

/// Scores in the hundreds: one key has all the weight, and unguarded exponentials would overflow.
#[test]
fn extreme_scores() {
    on_every_isa(|cpu| {
        let mut random = Random(12);
        for (start, tokens) in [(0, 9), (1100, 1)] {
            for (scale, kind) in [
                (0.0, KvType::F32),
                (1e-40, KvType::F32),
                (1e-20, KvType::F32),
                (30.0, KvType::F32),
                (200.0, KvType::F32),
                // Denormal in f16, or all but too large for it.
                (1e-6, KvType::F16),
                (3e4, KvType::F16),
                (1e-4, KvType::Q8_0),
                (200.0, KvType::Q8_0),
            ] {
                let window = None;
                let case =
                    Case { heads: 4, kv_heads: 2, dim: 32, start, tokens, window, kind, scale };
                let data = case.data(&mut random);
                let what = format!("{} {kind:?} scale {scale}, {tokens} from {start}", cpu.isa());
                assert_close(&what, &case.run(cpu, &data), &case.oracle(&data));
            }
        }
    });
}

#[test]
fn results_do_not_depend_on_threads() {
    for (start, tokens, kind) in [
        (0, 40, KvType::F16),
        (1300, 1, KvType::F16),
        (1300, 8, KvType::F16),
        (1300, 1, KvType::Q8_0),
        (1300, 8, KvType::Q8_0),
    ] {
        let window = Some(1200);
        let case = Case { heads: 8, kv_heads: 2, dim: 32, start, tokens, window, kind, scale: 2.0 };
        let data = case.data(&mut Random(13));
        let results = std::cell::RefCell::new(Vec::new());
        on_every_isa(|cpu| results.borrow_mut().push(case.run(cpu, &data)));
        for pair in results.into_inner().chunks_exact(2) {
            assert!(pair[0] == pair[1], "{tokens} from {start}");
        }
    }
}

/// What lies outside the window, or comes after the last query, must not even be looked at.
#[test]
fn unseen_keys_do_not_matter() {
    on_every_isa(|cpu| {
        // Keys are read from where they are stored, or unpacked first.
        for dim in [32, 8] {
            unseen_keys_do_not_matter_at(cpu, dim);
        }
    });
}

fn unseen_keys_do_not_matter_at(cpu: &Cpu, dim: usize) {
    let (len, window) = (200, 50);
    let mut random = Random(14);
    let (mut k, mut v, q) =
        (random.numbers(len * dim), random.numbers(len * dim), random.numbers(dim));
    let run = |k: &[f32], v: &[f32]| {
        let mut cache = KvCache::new(1, 1, dim, len, KvType::F32).unwrap();
        cache.write(0, 0, k, v).unwrap();
        let mut out = vec![0.0; dim];
        let queries = Queries { q: &q, heads: 1, start: 150, rope: None };
        attention(cpu, queries, cache.layer(0), Some(window), &mut out);
        out
    };
    let clean = run(&k, &v);
    for position in (0..=150 - window).chain(151..len) {
        k[position * dim..][..dim].fill(f32::NAN);
        v[position * dim..][..dim].fill(f32::NAN);
    }
    assert_eq!(run(&k, &v), clean);
    k[(151 - window) * dim] = f32::NAN;
    assert!(run(&k, &v).iter().all(|x| x.is_nan()));
}

/// A number that is not finite must come out as one, wherever it is: nothing may take the most of two numbers and drop it.
#[test]
fn what_is_not_finite_is_not_hidden() {
    on_every_isa(|cpu| {
        for (tokens, kind) in [
            (1, KvType::F32),
            (1, KvType::F16),
            (1, KvType::Q8_0),
            (30, KvType::F32),
            (30, KvType::Q8_0),
        ] {
            let (dim, len) = (32, 300);
            let mut random = Random(15);
            let (mut k, v) = (random.numbers(len * dim), random.numbers(len * dim));
            let q = random.numbers(tokens * dim);
            k[7 * dim + 3] = f32::NAN;
            let mut cache = KvCache::new(1, 1, dim, len, kind).unwrap();
            cache.write(0, 0, &k, &v).unwrap();
            let mut out = vec![0.0; q.len()];
            let queries = Queries { q: &q, heads: 1, start: len - tokens, rope: None };
            attention(cpu, queries, cache.layer(0), None, &mut out);
            assert!(out.iter().all(|x| x.is_nan()), "{} {kind:?} {tokens} tokens", cpu.isa());
        }
    });
}

/// Queries and keys that attention rotates itself are as if they had been rotated before.
#[test]
fn rotation_on_the_way_is_the_same() {
    let (heads, kv_heads, dim) = (4, 2, 32);
    let mut rope = Rope::new(dim, 10_000.0);
    rope.extend_table(64);
    on_every_isa(|cpu| {
        for (start, tokens) in [(5, 1), (5, 50), (300, 1)] {
            let mut random = Random(16);
            let before = random.numbers(start * kv_heads * dim);
            let [mut q, mut k, v] =
                [heads, kv_heads, kv_heads].map(|heads| random.numbers(tokens * heads * dim));
            let cache_of = || {
                let mut cache = KvCache::new(1, kv_heads, dim, 400, KvType::F16).unwrap();
                cache.write(0, 0, &before, &before).unwrap();
                cache
            };
            let run = |cache: &KvCache, q: &[f32], rope| {
                let mut out = vec![0.0; q.len()];
                let queries = Queries { q, heads, start, rope };
                attention(cpu, queries, cache.layer(0), None, &mut out);
                out
            };
            let mut cache = cache_of();
            store_kv(cpu, &mut cache, 0, start, (&k, &v), &rope).unwrap();
            let got = run(&cache, &q, Some(&rope));
            for token in 0..tokens {
                rope.apply(&mut q[token * heads * dim..][..heads * dim], start + token);
                rope.apply(&mut k[token * kv_heads * dim..][..kv_heads * dim], start + token);
            }
            let mut cache = cache_of();
            cache.write(0, start, &k, &v).unwrap();
            assert!(got == run(&cache, &q, None), "{} {tokens} from {start}", cpu.isa());
        }
    });
}
