//! What is wrong with a file's weights arrives at whoever loads the model: one line that names the place.

use std::fs;

use tandem_golden::golden_model;
use tandem_model::Checkpoint;
use tandem_runtime::Model;
use tandem_testkit::build_once;

#[test]
fn a_weight_that_is_not_finite_stops_loading() {
    let source = golden_model();
    let inputs = ["config.json", "model.safetensors"].map(|name| source.join(name));
    let folder = build_once("golden-nan", &inputs, |folder| {
        for input in &inputs {
            fs::copy(input, folder.join(input.file_name().unwrap())).unwrap();
        }
        let weights = folder.join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        let last = bytes.len() - 2;
        bytes[last..].copy_from_slice(&[0xc0, 0x7f]); // NaN as bf16
        fs::write(&weights, bytes).unwrap();
    });
    let checkpoint = Checkpoint::open(&folder).unwrap();
    for threads in [1, 3] {
        let error = Model::load(&checkpoint, threads, &|_| {}).err().expect("refused").to_string();
        let start = format!("{}: tensor `", folder.join("model.safetensors").display());
        assert!(error.starts_with(&start) && !error.contains('\n'), "{error}");
        assert!(
            error.contains("expected finite weights, found NaN or infinity at row "),
            "{error}"
        );
    }
}
