//! Exports that cannot be, and what they leave: nothing.

use std::fs;

use tandem_golden::golden_model;
use tandem_model::ModelError;
use tandem_onnx::{ExportOptions, WeightType, export};
use tandem_testkit::scratch;

use crate::checkpoint;

const OPTIONS: ExportOptions = ExportOptions { weights: WeightType::F32, op_by_op: false };

#[test]
fn an_interrupted_export_leaves_nothing() {
    let scratch = scratch("interrupted");
    let out = scratch.path().join("onnx");
    let mut calls = 0;
    let result = export(&checkpoint(&golden_model()), &out, OPTIONS, |_| {
        calls += 1;
        calls < 5
    });
    assert!(matches!(result, Err(ModelError::Interrupted)));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn what_is_there_stays() {
    let scratch = scratch("there");
    let model = checkpoint(&golden_model());
    let error =
        |out: &std::path::Path| export(&model, out, OPTIONS, |_| true).unwrap_err().to_string();
    fs::write(scratch.path().join("mine"), "mine").unwrap();
    assert_eq!(
        error(scratch.path()),
        format!(
            "{}: output: expected a new or an empty folder, found a folder with files",
            scratch.path().display()
        )
    );
    let message = error(&scratch.path().join("mine"));
    assert!(message.ends_with("found a file"), "{message}");
    let message = error(&scratch.path().join("absent/onnx"));
    assert!(message.contains("absent/onnx: cannot create"), "{message}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

#[test]
fn an_empty_folder_is_filled() {
    let scratch = scratch("empty");
    export(&checkpoint(&golden_model()), scratch.path(), OPTIONS, |_| true).unwrap();
    let mut names: Vec<String> = fs::read_dir(scratch.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = ["config.json", "generation_config.json", "model.onnx", "model.onnx.data"];
    assert_eq!(names, expected);
}

/// Four-bit blocks have 32 columns.
#[test]
fn rows_that_are_no_whole_blocks_are_refused() {
    let narrow = tandem_golden::golden_model();
    let mut model = checkpoint(&narrow);
    model.config_mut().expert_width = 80;
    let scratch = scratch("narrow");
    let options = ExportOptions { weights: WeightType::Int4, op_by_op: false };
    let error = export(&model, &scratch.path().join("onnx"), options, |_| true).unwrap_err();
    let expected = "columns of `model.layers.0.block_sparse_moe.experts.0.w2.weight`: expected a \
                    multiple of 32 for int4, found 80";
    assert!(error.to_string().ends_with(expected), "{error}");
}
