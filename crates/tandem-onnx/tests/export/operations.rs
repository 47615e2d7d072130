//! Models of single operations, chained by hand, are the whole model.

use tandem_formats::safetensors::SafetensorsFile;
use tandem_golden::{golden, golden_model};
use tandem_onnx::{ExportOptions, WeightType, export};
use tandem_testkit::{onnx_python, run_python_in, scratch};

use crate::checkpoint;

#[test]
fn operations_one_by_one_give_the_references_logits() {
    let scratch = scratch("single");
    let folder = scratch.path().join("onnx");
    let options = ExportOptions { weights: WeightType::F32, op_by_op: true };
    let exported = export(&checkpoint(&golden_model()), &folder, options, |_| true).unwrap();
    assert_eq!(exported.single_operations, 4 * 12 + 3);
    let prompt = &golden()[0];
    let results = scratch.path().join("logits.safetensors");
    let ids = serde_json::json!(prompt.ids).to_string();
    let (folder, path) = (folder.display().to_string(), results.display().to_string());
    run_python_in(&onnx_python(), include_str!("run_operations.py"), &[&folder, &ids, &path]);
    let logits = SafetensorsFile::open(&results).unwrap().read_f32("logits").unwrap();
    prompt.check_logits(&logits, 1e-4);
}
