//! What ONNX Runtime computes with an export.

use tandem_formats::DType;
use tandem_golden::{
    WINDOW, check_logits, golden, golden_model, stories, stories_bf16, windowed_logits,
};
use tandem_model::convert::{ConvertTypes, convert};
use tandem_model::reference;
use tandem_onnx::WeightType;

use crate::{Export, checkpoint};

/// Logits may differ by this share of the reference's range.
const F32_BOUND: f32 = 1e-4;

#[test]
fn f32_equals_the_reference_on_the_random_model() {
    let prompts = golden();
    let results = Export::new(&checkpoint(&golden_model()), WeightType::F32).run(&prompts, None);
    for (n, prompt) in prompts.iter().enumerate() {
        prompt.check_logits(&results.f32s(n, "logits"), F32_BOUND);
        prompt.check_logits(&results.f32s(n, "batched"), F32_BOUND);
        prompt.check_router(&results.router(n), 1e-4);
        assert_eq!(results.ids(n, "greedy"), prompt.greedy, "{}", prompt.name);
    }
}

#[test]
fn f32_equals_the_reference_on_the_trained_model() {
    let prompts = stories();
    let results = Export::new(&checkpoint(&stories_bf16()), WeightType::F32).run(&prompts, None);
    for (n, prompt) in prompts.iter().enumerate() {
        prompt.check_logits(&results.f32s(n, "logits"), F32_BOUND);
        prompt.check_logits(&results.f32s(n, "batched"), F32_BOUND);
        assert_eq!(results.ids(n, "greedy"), prompt.greedy, "{}", prompt.name);
    }
}

#[test]
fn the_sliding_window_is_the_references() {
    let mut model = checkpoint(&golden_model());
    model.config_mut().sliding_window = Some(WINDOW);
    let mut prompts = golden();
    let prompts = [prompts.remove(2)];
    let results = Export::new(&model, WeightType::F32).run(&prompts, None);
    let expected = windowed_logits();
    let logits = results.f32s(0, "logits");
    check_logits("windowed", &expected, &logits[logits.len() - expected.len()..], F32_BOUND);
}

/// Rounding bf16 weights to f16 loses only what is below 2^-24.
#[test]
fn f16_is_near_the_reference() {
    let prompts = stories();
    let results = Export::new(&checkpoint(&stories_bf16()), WeightType::F16).run(&prompts, None);
    for (n, prompt) in prompts.iter().enumerate() {
        prompt.check_logits(&results.f32s(n, "logits"), F32_BOUND);
        assert_eq!(results.ids(n, "greedy"), prompt.greedy, "{}", prompt.name);
    }
}

/// The weights of an int4 export are those of q4_0 and q8_0: with f32 activations ONNX Runtime computes what the plain
/// forward pass computes with a GGUF file of these types, but for the embedding, which is rounded to f16. With activations
/// rounded to 8 bits it is off by as much as this program is.
#[test]
fn int4_has_the_weights_of_q4_0() {
    let prompts = stories();
    let scratch = tandem_testkit::scratch("int4");
    let gguf = scratch.path().join("model.gguf");
    let types = ConvertTypes::with_default_output(DType::Q4_0);
    convert(&checkpoint(&stories_bf16()), &gguf, types, |_| true).unwrap();
    let quantized = checkpoint(&gguf);
    let export = Export::new(&quantized, WeightType::Int4);
    let f32_activations = Some(1);
    let (exact, rounded) = (export.run(&prompts, f32_activations), export.run(&prompts, None));
    let mut errors = Vec::new();
    for (n, prompt) in prompts.iter().enumerate() {
        let expected = reference::forward(&quantized, &prompt.ids).unwrap().logits;
        check_logits(&prompt.name, &expected, &exact.f32s(n, "logits"), 5e-4);
        errors.push(relative_error(&rounded.f32s(n, "logits"), &expected));
    }
    assert!(errors.iter().all(|&error| error < 0.1), "logits are off by {errors:?}");
}

fn relative_error(values: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = values.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}
