//! Exports run from Rust, with ONNX Runtime's library opened at run time.

use std::fs;
use std::path::Path;

use tandem_golden::{Prompt, golden, golden_model, stories, stories_bf16};
use tandem_onnx::WeightType;
use tandem_onnx::onnxruntime::{ExportFolder, OnnxModel, OnnxOptions, Provider};
use tandem_runtime::{ForeignModel, LogitsFor};
use tandem_testkit::onnxruntime_library;

use crate::{Export, checkpoint};

fn load(folder: &Path, batch: usize) -> OnnxModel {
    let library = onnxruntime_library();
    let options = OnnxOptions {
        library: Some(&library),
        provider: Provider::Cpu,
        threads: 2,
        context: 512,
        batch,
    };
    OnnxModel::load(&ExportFolder::open(folder).unwrap(), &options).unwrap()
}

/// Logits of all tokens at once; a prompt in parts, and then token by token through the keys and values that come out.
fn check(model: &mut OnnxModel, prompt: &Prompt) {
    model.truncate(0);
    let logits = model.forward(&prompt.ids, LogitsFor::All).unwrap();
    prompt.check_logits(&logits, 1e-4);
    // What is kept of a longer text counts no more.
    model.truncate(0);
    let half = prompt.ids.len() / 2;
    assert!(half == 0 || model.forward(&prompt.ids[..half], LogitsFor::None).unwrap().is_empty());
    let mut next = prompt.ids[half..].to_vec();
    let mut text = Vec::new();
    let vocab_size = model.vocab_size();
    while text.len() < prompt.greedy.len() {
        let logits = model.forward(&next, LogitsFor::Last).unwrap();
        assert_eq!(logits.len(), vocab_size);
        let best = (0..vocab_size).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        text.push(u32::try_from(best).unwrap());
        next = vec![*text.last().unwrap()];
    }
    assert_eq!(text, prompt.greedy, "{}", prompt.name);
    // The last logits again, after what came since has been forgotten.
    model.truncate(prompt.ids.len() - 1);
    let again = model.forward(&prompt.ids[prompt.ids.len() - 1..], LogitsFor::Last).unwrap();
    let last = logits_of_last(&logits, vocab_size);
    let largest = last.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(again.iter().zip(last).all(|(a, b)| (a - b).abs() <= 1e-4 * largest));
}

fn logits_of_last(logits: &[f32], vocab_size: usize) -> &[f32] {
    &logits[logits.len() - vocab_size..]
}

#[test]
fn logits_and_greedy_tokens_are_the_references() {
    for (model, prompts) in [(golden_model(), golden()), (stories_bf16(), stories())] {
        let export = Export::new(&checkpoint(&model), WeightType::F32);
        let mut model = load(&export.folder(), 512);
        prompts.iter().for_each(|prompt| check(&mut model, prompt));
    }
}

#[test]
fn what_is_wrong_with_an_export_is_said() {
    let export = Export::new(&checkpoint(&golden_model()), WeightType::F32);
    let folder = export.folder();
    let error = || ExportFolder::open(&folder).err().unwrap().to_string();
    let data = folder.join("model.onnx.data");
    let bytes = fs::read(&data).unwrap();
    fs::write(&data, &bytes[..bytes.len() - 1]).unwrap();
    let message = error();
    let expected =
        format!("length: expected at least {} bytes, found {}", bytes.len(), bytes.len() - 1);
    assert!(message.ends_with(&format!("model.onnx.data: {expected}")), "{message}");
    fs::remove_file(&data).unwrap();
    assert!(error().contains("model.onnx.data: cannot open"), "{}", error());
    fs::write(&data, &bytes).unwrap();

    let graph = folder.join("model.onnx");
    let content = fs::read(&graph).unwrap();
    fs::write(&graph, &content[..content.len() / 2]).unwrap();
    assert!(error().contains("model.onnx: content: expected an ONNX model"), "{}", error());
    // The same number of bytes, so that lengths stay right.
    let outside = String::from_utf8_lossy(&content).contains("model.onnx.data");
    assert!(outside, "the graph names its weights' file");
    let evil: Vec<u8> = replaced(&content, b"model.onnx.data", b"../../etc/passw");
    fs::write(&graph, evil).unwrap();
    assert!(
        error().contains("expected the name of a file beside the graph, found ../../etc/passw"),
        "{}",
        error()
    );
    fs::remove_file(&graph).unwrap();
    assert!(!ExportFolder::is_one(&folder));
    assert!(error().contains("model.onnx: cannot open"), "{}", error());
}

/// A graph of one model with the config of another.
#[test]
fn a_config_of_another_model_is_noticed() {
    let export = Export::new(&checkpoint(&golden_model()), WeightType::F32);
    let config = export.folder().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    let other = text.replace("\"vocab_size\":512", "\"vocab_size\":510");
    assert_ne!(text, other);
    fs::write(&config, other).unwrap();
    let library = onnxruntime_library();
    let options = OnnxOptions {
        library: Some(&library),
        provider: Provider::Cpu,
        threads: 1,
        context: 64,
        batch: 64,
    };
    let folder = ExportFolder::open(&export.folder()).unwrap();
    let error = OnnxModel::load(&folder, &options).err().unwrap().to_string();
    assert!(
        error.contains("model.onnx: output `logits`: expected Float32 of shape [-1, -1, 510]"),
        "{error}"
    );
    // The package without OpenVINO says so.
    let options = OnnxOptions { provider: Provider::OpenVino, ..options };
    let error = OnnxModel::load(&folder, &options).err().unwrap().to_string();
    assert!(error.contains("ONNX Runtime: OpenVINOExecutionProvider"), "{error}");
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let starts = |&i: &usize| bytes[i..].starts_with(from);
    let places: Vec<_> = (0..bytes.len() - from.len()).filter(starts).collect();
    places.iter().for_each(|&i| bytes[i..i + to.len()].copy_from_slice(to));
    bytes
}
