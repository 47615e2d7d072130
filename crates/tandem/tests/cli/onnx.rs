//! `analyze` and `export-onnx`.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use serde_json::Value;
use tandem_golden::stories_bf16;
use tandem_testkit::{scratch, testdata};

use crate::{error_line, random_model, stderr, stdout, tandem};

const PROFILE: [&str; 2] = ["--machine", "core-ultra-9-185h"];

/// The report of a model, which must follow its schema.
fn report(model: &Path, more: &[&str]) -> Value {
    let mut command = tandem();
    command.args(["analyze", "--json", "-m"]).arg(model).args(PROFILE).args(more);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    check_schema(&report);
    report
}

fn check_schema(report: &Value) {
    let text = std::fs::read(testdata("../docs/onnx-analysis.schema.json")).unwrap();
    let schema: Value = serde_json::from_slice(&text).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(report).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let mut broken = report.clone();
    broken["operations"][0]["decode"]["device"] = "abacus".into();
    assert!(!validator.is_valid(&broken), "the schema says nothing");
}

fn inspect(model: &Path) -> Value {
    let output = tandem().args(["inspect", "--json"]).arg(model).output().unwrap();
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Bytes of weights that the operations of a decoded token read, keys and values left out.
fn weight_bytes(report: &Value) -> u64 {
    let operations = report["operations"].as_array().unwrap();
    let weights = operations.iter().filter(|o| o["name"] != "attention_compute");
    weights.map(|o| o["decode"]["bytes"].as_u64().unwrap()).sum()
}

#[test]
fn an_analysis_agrees_with_inspect() {
    for model in [stories_bf16(), random_model()] {
        let (report, inspected) = (report(&model, &[]), inspect(&model));
        for part in ["config", "parts", "total"] {
            assert_eq!(report[part], inspected[part], "{part}");
        }
        assert_eq!(Value::from(weight_bytes(&report)), inspected["total"]["bytes_per_token"]);
    }
}

/// The figures of the published model, from its small files alone.
#[test]
fn the_real_config_is_enough() {
    let tiny = testdata("phi-tiny-moe");
    let report = report(&tiny, &[]);
    assert_eq!(report["total"]["weights"], 3_755_220_288_u64);
    assert_eq!(report["total"]["bytes"], 7_510_440_576_u64);
    assert_eq!(report["total"]["tensors"], 1957);
    assert_eq!(report["per_token"]["kv_bytes_per_token_of_context"], 64 << 10);
    assert_eq!(Value::from(weight_bytes(&report)), report["total"]["bytes_per_token"]);
    // Two for each weight that a token uses, and attention to 513 keys by 16 heads of 128 in 32 layers; norms and the like
    // are a part of a percent.
    let arithmetic = report["per_token"]["arithmetic"].as_f64().unwrap();
    let products = 2.0 * report["total"]["weights_per_token"].as_f64().unwrap();
    let counted = products + f64::from(4 * 513 * 16 * 128 * 32);
    assert!((arithmetic / counted - 1.0).abs() < 0.005, "{arithmetic} for {counted}");
    // The design's figure for 4 bits, lm_head and embedding of 8 apart.
    let quantized = self::report(&tiny, &["--type", "q4_0"]);
    let lm_head = quantized["parts"]["lm_head"]["bytes_per_token"].as_u64().unwrap();
    let rest = quantized["total"]["bytes_per_token"].as_u64().unwrap() - lm_head;
    let in_4_bits = rest + lm_head * 18 / 34;
    assert!((650_000_000..665_000_000).contains(&in_4_bits), "{in_4_bits}");
}

#[test]
fn an_analysis_names_what_needs_a_kernel_of_its_own() {
    let output = tandem().args(["analyze", "-m"]).arg(random_model()).args(PROFILE).output();
    let text = stdout(&output.unwrap());
    for part in ["GroupQueryAttention", "SparseMixer is two searches", "use_sparse_mixer", "fits"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn this_machine_can_be_measured_and_the_report_written() {
    let folder = scratch("analysis");
    let file = folder.path().join("report.json");
    let mut command = tandem();
    command.args(["analyze", "-m"]).arg(random_model()).arg("-o").arg(&file);
    assert!(command.output().unwrap().status.success());
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    check_schema(&report);
    assert!(report["machine"]["cpu"]["bytes_per_second"].as_f64().unwrap() > 1e8);
    assert_eq!(report["machine"]["gpu"], Value::Null);
}

#[test]
fn machines_that_are_not_there_are_named() {
    let mut command = tandem();
    let message =
        error_line(command.args(["analyze", "--machine", "abacus", "-m"]).arg(random_model()));
    assert!(
        message.contains("--machine: expected `this`, core-ultra-9-185h or a JSON file"),
        "{message}"
    );
}

#[test]
fn an_export_has_the_models_small_files() {
    let folder = scratch("export");
    let out = folder.path().join("onnx");
    // The demo model, a GGUF file.
    let output = tandem().args(["export-onnx", "--weights", "int4"]).arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = "Once upon a time, there was a dragon. <|end|>";
    let ids = |model: Option<&PathBuf>| {
        let mut command = tandem();
        command.args(["tokenize", "--ids", text]);
        if let Some(model) = model {
            command.arg("-m").arg(model);
        }
        stdout(&command.output().unwrap())
    };
    // Weights are not looked at for a tokenizer: they stand in for those that are in another form.
    let weights = stories_bf16().join("model.safetensors");
    std::os::unix::fs::symlink(weights, out.join("model.safetensors")).unwrap();
    assert_eq!(ids(Some(&out)), ids(None));
    let (exported, demo) =
        (inspect(&out), inspect(&testdata("../models/stories/stories-17m.gguf")));
    assert_eq!(exported["config"], demo["config"]);
}

#[test]
fn weights_must_be_there_to_be_exported() {
    let folder = scratch("no-weights");
    let mut command = tandem();
    command.args(["export-onnx", "-m"]).arg(testdata("phi-tiny-moe"));
    let message = error_line(command.arg(folder.path().join("onnx")));
    assert!(message.contains("model-00001-of-00002.safetensors: cannot open"), "{message}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}

/// A file size limit stands in for a full disk: both make a write fail half-way.
#[test]
fn a_full_disk_leaves_no_export() {
    let folder = scratch("full-disk");
    let out = folder.path().join("onnx");
    let script = format!(
        "ulimit -f 2000; trap '' XFSZ; exec '{}' export-onnx -m '{}' '{}'",
        env!("CARGO_BIN_EXE_tandem"),
        stories_bf16().display(),
        out.display()
    );
    let output = Process::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("model.onnx.data: cannot write"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
}
