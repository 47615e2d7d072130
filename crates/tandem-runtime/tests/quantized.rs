//! Models in 8 and 4 bits: packed weights and activations in 8 bits.
//!
//! Quantized weights are another model, so the reference's logits are no oracle. Two things are: the same quantized
//! weights on the exact path; and how well the model still predicts text.

use std::path::PathBuf;
use std::sync::Arc;

use tandem_formats::DType;
use tandem_golden::{golden, golden_model, stories_bf16};
use tandem_memory::{KvCache, KvType};
use tandem_model::Checkpoint;
use tandem_model::convert::{ConvertTypes, convert};
use tandem_runtime::perplexity::{Perplexity, score};
use tandem_runtime::{Executor, LogitsFor, Model, Segment, evaluate};
use tandem_testkit::testdata;

/// What the bf16 weights reach on the test stories, by `transformers`.
const REFERENCE_PERPLEXITY: f64 = 22.4294;

fn engine(checkpoint: &Checkpoint, threads: usize) -> (Executor, KvCache) {
    engine_of(Model::load(checkpoint, threads, &|_| {}).unwrap(), threads, KvType::F32)
}

fn engine_of(model: Model, threads: usize, kv_type: KvType) -> (Executor, KvCache) {
    let model = Arc::new(model);
    let c = model.config();
    let kv = KvCache::new(c.n_layers, c.n_kv_heads, c.head_dim, c.context_length, kv_type);
    (Executor::new(model, threads, 256).unwrap(), kv.unwrap())
}

/// Writes a model with its matrices in `dtype`.
fn converted(source: &Checkpoint, folder: &tempfile::TempDir, dtype: DType) -> Checkpoint {
    let path = folder.path().join(format!("{dtype}.gguf"));
    convert(source, &path, ConvertTypes { matrices: dtype, output: dtype }, |_| true).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// What differs from the exact path on the same weights is the rounding of activations to 8 bits.
#[test]
fn logits_are_those_of_the_exact_path_but_for_8_bit_activations() {
    let folder = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&stories_bf16()).unwrap();
    let prompt = &tandem_golden::stories()[0];
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let checkpoint = converted(&original, &folder, dtype);
        let exact = Model::load_exact(&checkpoint, 2, &|_| {}).unwrap();
        let [packed, exact] =
            [engine(&checkpoint, 2), engine_of(exact, 2, KvType::F32)].map(|engine| {
                let (mut executor, mut kv) = engine;
                evaluate(&mut executor, &mut kv, &prompt.ids, LogitsFor::All, None).unwrap()
            });
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = packed.iter().zip(&exact).map(|(a, b)| square(a - b)).sum();
        let size: f64 = exact.iter().map(|&l| square(l)).sum();
        let relative = (error / size).sqrt();
        // Rounding leaves half a percent or so, and five where it tips a router's close choice. Anything wrong is
        // off by a multiple.
        assert!(relative < 0.1, "{dtype}: logits are off by {relative}");
        assert!(relative > 1e-6, "{dtype}: the exact path was taken");
    }
}

/// Whoever computes what: the same logits to the last bit.
#[test]
fn logits_do_not_depend_on_the_team() {
    let folder = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&golden_model()).unwrap();
    let prompt = &golden()[2];
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let checkpoint = converted(&original, &folder, dtype);
        let logits = |threads| {
            let (mut executor, mut kv) = engine(&checkpoint, threads);
            evaluate(&mut executor, &mut kv, &prompt.ids, LogitsFor::Last, None).unwrap()
        };
        let expected = logits(1);
        for threads in [2, 3] {
            assert!(logits(threads) == expected, "{dtype}, {threads} threads");
        }
    }
}

#[test]
fn an_8_bit_model_predicts_text_as_well_as_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = converted(&Checkpoint::open(&stories_bf16()).unwrap(), &folder, DType::Q8_0);
    assert_predicts_well(&checkpoint, KvType::F32, 0.005);
}

#[test]
fn a_cache_in_8_bits_predicts_text_as_well_as_an_exact_one() {
    // Half of a percent is what it is; a cache that is wrong costs several.
    assert_predicts_well(&Checkpoint::open(&stories_bf16()).unwrap(), KvType::Q8_0, 0.01);
}

fn assert_predicts_well(checkpoint: &Checkpoint, kv_type: KvType, bound: f64) {
    let (mut executor, mut kv) =
        engine_of(Model::load(checkpoint, 2, &|_| {}).unwrap(), 2, kv_type);
    let mut sum = Perplexity::default();
    for ids in pieces(checkpoint, testdata("stories/perplexity.json")) {
        sum.add(score(&mut executor, &mut kv, &ids).unwrap());
    }
    let change = sum.perplexity() / REFERENCE_PERPLEXITY - 1.0;
    assert!(change.abs() < bound, "perplexity {}, {change:+.2e} off", sum.perplexity());
}

/// Each story with the end of text, at most 400 tokens.
fn pieces(checkpoint: &Checkpoint, file: PathBuf) -> Vec<Vec<u32>> {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let tokenizer = checkpoint.text().unwrap().tokenizer;
    let end = checkpoint.special_ids().stop[0];
    let stories = json["stories"].as_array().unwrap();
    let piece = |story: &serde_json::Value| {
        let mut ids = tokenizer.encode(story.as_str().unwrap()).unwrap();
        ids.truncate(400.min(checkpoint.config().context_length - 1));
        ids.push(end);
        ids
    };
    stories.iter().map(piece).collect()
}

/// Sums of packed products are added up in an order that does not depend on how many tokens there are; so a text that is
/// written together with others is the text that would be written alone, to the last bit.
#[test]
fn texts_together_are_what_they_are_alone() {
    let folder = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&golden_model()).unwrap();
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let checkpoint = converted(&original, &folder, dtype);
        let (mut executor, _) = engine(&checkpoint, 2);
        // Several tokens each, so that one prompt more or less does not decide how attention is computed.
        let prompts: Vec<Vec<u32>> = (0..7u32).map(|n| (n..n + 3 + n).collect()).collect();
        let next: Vec<Vec<u32>> = (40..47).map(|id| vec![id]).collect();
        let mut caches: Vec<_> =
            prompts.iter().map(|_| executor.kv_cache(16, KvType::F16).unwrap()).collect();
        let mut alone = Vec::new();
        for ((prompt, next), kv) in prompts.iter().zip(&next).zip(&mut caches) {
            alone.push(evaluate(&mut executor, kv, prompt, LogitsFor::Last, None).unwrap());
            alone.push(executor.forward(next, kv, LogitsFor::Last, None).unwrap().to_vec());
            kv.clear();
        }
        let vocab = alone[0].len();
        for (pass, ids) in [prompts, next].iter().enumerate() {
            // Every third text's logits are not asked for.
            let wanted = |n| if n % 3 == 2 { LogitsFor::None } else { LogitsFor::Last };
            let parts = ids.iter().zip(&mut caches).enumerate();
            let mut segments: Vec<_> =
                parts.map(|(n, (ids, kv))| Segment { ids, kv, wanted: wanted(n) }).collect();
            let logits = executor.forward_segments(&mut segments, &[]).unwrap();
            let expected = (0..7).filter(|n| n % 3 != 2).map(|n| &alone[2 * n + pass]);
            assert!(logits.chunks_exact(vocab).eq(expected.map(Vec::as_slice)), "{dtype} {pass}");
        }
    }
}
