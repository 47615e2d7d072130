//! The operations put together to a whole forward pass, against the reference implementation.
//!
//! `testdata/golden` holds a small model of PhiMoE's shape and what `transformers` computes with it in f32. This
//! pins down what the conformance suite's own oracles could get wrong in the same way as the operations: the
//! pairing of rotary embedding, the edges of the sliding window, the epsilon of the norms.

use std::path::{Path, PathBuf};

use tandem_cpu::ops::{
    Input, LayerNorm, Precision, QuantizedActivations, Queries, Rope, add, add_scaled, argmax,
    attention, matmul, silu_mul, store_kv,
};
use tandem_cpu::{Cpu, Isa, MatrixRef, ThreadTeam};
use tandem_formats::DType;
use tandem_formats::safetensors::SafetensorsFile;
use tandem_memory::{KvCache, KvType};
use tandem_model::router::sparsemixer;

const LAYERS: usize = 4;
const HIDDEN: usize = 128;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const EXPERTS: usize = 16;
const EXPERT_WIDTH: usize = 96;
const VOCAB: usize = 512;
const EPS: f32 = 1e-5;
const JITTER: f32 = 0.01;

fn golden(file: &str) -> SafetensorsFile {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "..", "testdata", "golden", file].iter().collect();
    SafetensorsFile::open(Path::new(&path)).unwrap()
}

/// A forward pass over one sequence, in batches as they come.
struct Pass<'a> {
    cpu: &'a Cpu,
    model: &'a SafetensorsFile,
    window: Option<usize>,
    rope: Rope,
    kv: KvCache,
    /// Router logits, `[layer][token][expert]`, of the last batch.
    router_logits: Vec<Vec<f32>>,
}

impl<'a> Pass<'a> {
    fn new(cpu: &'a Cpu, model: &'a SafetensorsFile, window: Option<usize>, kind: KvType) -> Self {
        let kv = KvCache::new(LAYERS, KV_HEADS, HEAD_DIM, 64, kind).unwrap();
        let rope = Rope::new(HEAD_DIM, 10_000.0);
        Self { cpu, model, window, rope, kv, router_logits: Vec::new() }
    }

    fn vector(&self, name: &str) -> Vec<f32> {
        self.model.read_f32(name).unwrap()
    }

    /// `x` times a matrix, as it is stored: bf16.
    fn linear(&self, name: &str, bias: bool, x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        let bytes = self.model.read(&format!("{name}.weight")).unwrap();
        let bias = bias.then(|| self.vector(&format!("{name}.bias")));
        let mut out = vec![0.0; x.len() / cols * rows];
        let weights = MatrixRef::new(DType::BF16, rows, cols, &bytes);
        matmul(self.cpu, weights, bias.as_deref(), Input::exact(x), &mut out);
        out
    }

    fn norm(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let (weight, bias) =
            (self.vector(&format!("{name}.weight")), self.vector(&format!("{name}.bias")));
        let mut out = vec![0.0; x.len()];
        LayerNorm { weight: &weight, bias: &bias, eps: EPS }.apply(self.cpu, x, &mut out);
        out
    }

    /// Logits of every token.
    fn forward(&mut self, ids: &[i32]) -> Vec<f32> {
        let table = self.vector("model.embed_tokens.weight");
        let mut x: Vec<f32> =
            ids.iter().flat_map(|&id| table[id as usize * HIDDEN..][..HIDDEN].to_vec()).collect();
        self.router_logits.clear();
        let start = self.kv.len();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let normed = self.norm(&name("input_layernorm"), &x);
            add(&mut x, &self.attention(layer, start, &normed));
            let normed = self.norm(&name("post_attention_layernorm"), &x);
            self.experts(layer, &normed, &mut x);
        }
        let normed = self.norm("model.norm", &x);
        self.linear("lm_head", true, &normed, VOCAB, HIDDEN)
    }

    fn attention(&mut self, layer: usize, start: usize, x: &[f32]) -> Vec<f32> {
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}_proj");
        let (q_dim, kv_dim) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let q = self.linear(&name("q"), true, x, q_dim, HIDDEN);
        let k = self.linear(&name("k"), true, x, kv_dim, HIDDEN);
        let v = self.linear(&name("v"), true, x, kv_dim, HIDDEN);
        store_kv(self.cpu, &mut self.kv, layer, start, (&k, &v), &self.rope).unwrap();
        let mut mixed = vec![0.0; q.len()];
        let queries = Queries { q: &q, heads: HEADS, start, rope: Some(&self.rope) };
        attention(self.cpu, queries, self.kv.layer(layer), self.window, &mut mixed);
        self.linear(&name("o"), true, &mixed, HIDDEN, q_dim)
    }

    fn experts(&mut self, layer: usize, normed: &[f32], x: &mut [f32]) {
        let name = |part: String| format!("model.layers.{layer}.block_sparse_moe.{part}");
        let logits = self.linear(&name("gate".into()), false, normed, EXPERTS, HIDDEN);
        for (token, logits) in logits.chunks_exact(EXPERTS).enumerate() {
            let routing = sparsemixer(logits, JITTER);
            let input = &normed[token * HIDDEN..][..HIDDEN];
            for (expert, weight) in routing.experts.into_iter().zip(routing.weights) {
                let matrix = |w: &str| name(format!("experts.{expert}.{w}"));
                let mut gate = self.linear(&matrix("w1"), false, input, EXPERT_WIDTH, HIDDEN);
                let up = self.linear(&matrix("w3"), false, input, EXPERT_WIDTH, HIDDEN);
                let mut unused = QuantizedActivations::default();
                silu_mul(
                    self.cpu,
                    &mut gate,
                    &up,
                    EXPERT_WIDTH,
                    (&[], Precision::Bits8),
                    &mut unused,
                );
                let out = self.linear(&matrix("w2"), false, &gate, HIDDEN, EXPERT_WIDTH);
                add_scaled(&mut x[token * HIDDEN..][..HIDDEN], &out, weight);
            }
        }
        self.router_logits.push(logits);
    }
}

/// Asserts that no number is off by more than `share` of the expected numbers' range.
fn assert_within(what: &str, got: &[f32], expected: &[f32], share: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let ends = |f: fn(f32, f32) -> f32| expected.iter().copied().reduce(f).unwrap();
    let range = ends(f32::max) - ends(f32::min);
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= share * range, "{what}: off by {worst} in a range of {range}");
}

fn on_every_isa(check: impl Fn(&Cpu)) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        check(&Cpu::with_isa(ThreadTeam::new(2).unwrap(), isa).unwrap());
    }
}

#[test]
fn a_prompt_gives_the_references_logits_and_routes() {
    let (model, expected) = (golden("model/model.safetensors"), golden("golden.safetensors"));
    on_every_isa(|cpu| {
        for prompt in ["p0", "p1", "p2"] {
            let read = |name: &str| expected.read_f32(&format!("{prompt}.{name}")).unwrap();
            let ids = expected.read_i32(&format!("{prompt}.input_ids")).unwrap();
            let mut pass = Pass::new(cpu, &model, Some(2047), KvType::F32);
            let logits = pass.forward(&ids);
            let what = format!("{} {prompt}", cpu.isa());
            assert_within(&what, &logits, &read("logits"), 1e-5);
            assert_within(&what, &pass.router_logits.concat(), &read("router_logits"), 1e-5);
        }
    });
}

/// One token after the other, with a cache in f16: the same next token as the reference's.
#[test]
fn decoding_with_an_f16_cache_stays_close() {
    let (model, expected) = (golden("model/model.safetensors"), golden("golden.safetensors"));
    on_every_isa(|cpu| {
        let logits = expected.read_f32("p1.logits").unwrap();
        let ids = expected.read_i32("p1.input_ids").unwrap();
        let mut pass = Pass::new(cpu, &model, None, KvType::F16);
        for (id, expected) in ids.iter().zip(logits.chunks_exact(VOCAB)) {
            let logits = pass.forward(&[*id]);
            // Keys and values are rounded to 11 bits.
            assert_within(&cpu.isa().to_string(), &logits, expected, 5e-3);
            assert_eq!(argmax(&logits), argmax(expected));
        }
    });
}

#[test]
fn a_sliding_window_of_24_is_the_references() {
    let (model, expected) = (golden("model/model.safetensors"), golden("golden.safetensors"));
    on_every_isa(|cpu| {
        let ids = expected.read_i32("p2.input_ids").unwrap();
        let last = expected.read_f32("p2.swa24_logits_last8").unwrap();
        // In two batches, so that the window reaches back into the cache.
        let mut pass = Pass::new(cpu, &model, Some(24), KvType::F32);
        pass.forward(&ids[..40]);
        let logits = pass.forward(&ids[40..]);
        let what = cpu.isa().to_string();
        assert_within(&what, &logits[logits.len() - last.len()..], &last, 1e-5);
    });
}

#[test]
fn routes_are_the_references() {
    let expected = golden("golden.safetensors");
    for prompt in ["p0", "p1", "p2"] {
        let read = |name: &str| expected.read_f32(&format!("{prompt}.{name}")).unwrap();
        let (logits, weights) = (read("router_logits"), read("router_w"));
        let experts = expected.read_i32(&format!("{prompt}.router_idx")).unwrap();
        let choices = experts.chunks_exact(2).zip(weights.chunks_exact(2));
        for (logits, (experts, weights)) in logits.chunks_exact(EXPERTS).zip(choices) {
            let routing = sparsemixer(logits, JITTER);
            assert_eq!(routing.experts.map(|e| e as i32), experts);
            assert!((routing.weights[0] - weights[0]).abs() <= 1e-6);
            assert!((routing.weights[1] - weights[1]).abs() <= 1e-6);
        }
    }
}
