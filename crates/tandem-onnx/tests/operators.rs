//! What the analysis says of operators, held against the packages `onnx` and `onnxruntime`.

use tandem_onnx::OPSET;
use tandem_onnx::analysis::support;
use tandem_runtime::Operation;
use tandem_testkit::{onnx_python, run_python_in};

#[test]
fn operators_are_where_the_analysis_says() {
    let all = Operation::ALL.map(support);
    let facts = serde_json::json!({ "opset": OPSET, "operations": all }).to_string();
    let said = run_python_in(&onnx_python(), include_str!("operators.py"), &[&facts]);
    assert!(said.ends_with("checked\n"), "{said}");
}

/// MoE on the CPU: softmax routing with `use_sparse_mixer` as without. QMoE: the weights that come in.
#[test]
fn routing_is_what_the_analysis_says() {
    let said = run_python_in(&onnx_python(), include_str!("routing.py"), &[]);
    assert!(said.ends_with("checked\n"), "{said}");
}
