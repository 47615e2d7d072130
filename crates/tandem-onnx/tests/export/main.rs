//! Exports, checked by `onnx.checker` and run by ONNX Runtime, against the reference's data.

mod failures;
#[cfg(feature = "onnxruntime")]
mod onnxruntime;
mod operations;
mod runtime;

use std::path::{Path, PathBuf};

use tandem_formats::safetensors::SafetensorsFile;
use tandem_golden::{Prompt, RouterChoices};
use tandem_model::Checkpoint;
use tandem_onnx::{ExportOptions, WeightType, export};
use tandem_testkit::{Scratch, onnx_python, run_python_in, scratch};

/// A model's export in a folder of its own.
struct Export {
    scratch: Scratch,
}

impl Export {
    fn new(checkpoint: &Checkpoint, weights: WeightType) -> Self {
        let scratch = scratch("export");
        let options = ExportOptions { weights, op_by_op: false };
        export(checkpoint, &scratch.path().join("onnx"), options, |_| true).unwrap();
        Self { scratch }
    }

    fn folder(&self) -> PathBuf {
        self.scratch.path().join("onnx")
    }

    /// What ONNX Runtime makes of the prompts; `accuracy_level` replaces that of MatMulNBits.
    fn run(&self, prompts: &[Prompt], accuracy_level: Option<u8>) -> Results {
        let list: Vec<_> = prompts
            .iter()
            .map(|p| serde_json::json!({"ids": p.ids, "new_tokens": p.greedy.len()}))
            .collect();
        let file = |name: &str| self.scratch.path().join(name);
        std::fs::write(file("prompts.json"), serde_json::Value::from(list).to_string()).unwrap();
        let paths = [self.folder(), file("prompts.json"), file("results.safetensors")];
        let mut args: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        args.extend(accuracy_level.map(|level| level.to_string()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run_python_in(&onnx_python(), include_str!("run_export.py"), &args);
        Results(SafetensorsFile::open(&paths[2]).unwrap())
    }
}

/// What `run_export.py` wrote.
struct Results(SafetensorsFile);

impl Results {
    fn f32s(&self, prompt: usize, what: &str) -> Vec<f32> {
        self.0.read_f32(&format!("p{prompt}.{what}")).unwrap()
    }

    fn ids(&self, prompt: usize, what: &str) -> Vec<u32> {
        let ids = self.0.read_i32(&format!("p{prompt}.{what}")).unwrap();
        ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    }

    fn router(&self, prompt: usize) -> RouterChoices {
        RouterChoices {
            experts: self.ids(prompt, "experts"),
            weights: self.f32s(prompt, "weights"),
        }
    }
}

fn checkpoint(path: &Path) -> Checkpoint {
    Checkpoint::open(path).unwrap()
}
