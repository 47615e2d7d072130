//! Attention over the KV cache.

use half::f16;
use tandem_cpu::Cpu;
use tandem_cpu::ops::attention;
use tandem_memory::{KvCache, KvType};
use tandem_testkit::oracle::{Attention, Expected, assert_close};

use super::{Random, on_every_isa, roundings};

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

impl Case {
    fn data(&self, random: &mut Random) -> Data {
        let count = (self.start + self.tokens) * self.kv_heads * self.dim;
        let mut scaled = |count, scale| -> Vec<f32> {
            random.numbers(count).iter().map(|x| x * scale).collect()
        };
        let (k, v) = (scaled(count, self.scale), scaled(count, 1.0));
        let q = scaled(self.tokens * self.heads * self.dim, self.scale);
        // Room to spare, so that heads lie further apart than the sequence is long.
        let capacity = self.start + self.tokens + 3;
        let mut cache = KvCache::new(2, self.kv_heads, self.dim, capacity, self.kind).unwrap();
        cache.write(1, 0, &k, &v).unwrap();
        let stored = |x: Vec<f32>| match self.kind {
            KvType::F32 => x,
            KvType::F16 => x.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        };
        Data { q, k: stored(k), v: stored(v), cache }
    }

    fn run(&self, cpu: &Cpu, data: &Data) -> Vec<f32> {
        let mut out = vec![f32::NAN; data.q.len()];
        let kv = data.cache.layer(1);
        attention(cpu, &data.q, kv, self.start, self.heads, self.window, &mut out);
        out
    }

    fn oracle(&self, data: &Data) -> Vec<Expected> {
        let &Case { heads, kv_heads, dim, start, window, .. } = self;
        let Data { q, k, v, .. } = data;
        Attention { q, k, v, heads, kv_heads, dim, start, window }.expected(roundings(dim))
    }
}

#[test]
fn every_shape_window_and_storage() {
    // Heads, KV heads, numbers of a head.
    let shapes = [(8, 2, 32), (4, 4, 128), (3, 1, 96), (2, 1, 20), (5, 5, 6), (1, 1, 1)];
    // First position and tokens: a prompt, its continuation, decode near and far.
    let spans = [(0, 1), (0, 3), (0, 17), (5, 1), (60, 10), (63, 1), (64, 64), (700, 1), (1500, 3)];
    on_every_isa(|cpu| {
        let mut random = Random(11);
        for (index, &(heads, kv_heads, dim)) in shapes.iter().enumerate() {
            for &(start, tokens) in &spans {
                for window in [None, Some(1), Some(7), Some(70), Some(600), Some(2047)] {
                    // Long contexts at every shape would be slow, and are the same code.
                    if start > 100 && index > 1 {
                        continue;
                    }
                    for kind in [KvType::F16, KvType::F32] {
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

/// Scores in the hundreds: one key has all the weight, and unguarded exponentials would overflow.
#[test]
fn extreme_scores() {
    on_every_isa(|cpu| {
        let mut random = Random(12);
        for (start, tokens) in [(0, 9), (1100, 1)] {
            for scale in [0.0, 1e-20, 30.0, 200.0] {
                let (kind, window) = (KvType::F32, None);
                let case =
                    Case { heads: 4, kv_heads: 2, dim: 32, start, tokens, window, kind, scale };
                let data = case.data(&mut random);
                let what = format!("{} scale {scale}, {tokens} from {start}", cpu.isa());
                assert_close(&what, &case.run(cpu, &data), &case.oracle(&data));
            }
        }
    });
}

#[test]
fn results_do_not_depend_on_threads() {
    for (start, tokens) in [(0, 40), (1300, 1), (1300, 8)] {
        let (kind, window) = (KvType::F16, Some(1200));
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
        let (dim, len, window) = (8, 200, 50);
        let mut random = Random(14);
        let (mut k, mut v, q) =
            (random.numbers(len * dim), random.numbers(len * dim), random.numbers(dim));
        let run = |k: &[f32], v: &[f32]| {
            let mut cache = KvCache::new(1, 1, dim, len, KvType::F32).unwrap();
            cache.write(0, 0, k, v).unwrap();
            let mut out = vec![0.0; dim];
            attention(cpu, &q, cache.layer(0), 150, 1, Some(window), &mut out);
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
    });
}
