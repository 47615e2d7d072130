//! A small valid model in a folder of its own, to be made wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tandem_formats::DType;
use tandem_formats::safetensors::{self, Dtype};
use tandem_model::convert::{ConvertTypes, convert};
use tandem_model::{Checkpoint, ModelError, PhimoeConfig, catalogue};
use tandem_testkit::Rng;
use tempfile::TempDir;

/// One tensor of a safetensors file.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Tensor {
    /// The tensor with its weights in another encoding.
    pub(crate) fn encoded(mut self, dtype: Dtype, encode: impl Fn(f32) -> Vec<u8>) -> Self {
        self.data = self
            .data
            .as_chunks::<4>()
            .0
            .iter()
            .flat_map(|b| encode(f32::from_le_bytes(*b)))
            .collect();
        self.dtype = dtype;
        self
    }
}

/// A model folder whose parts are changed before it is written.
pub(crate) struct Model {
    dir: TempDir,
    pub(crate) config: Value,
    pub(crate) tensors: Vec<Tensor>,
}

impl Model {
    /// 2 layers, 4 experts, and head_dim is not hidden / heads, as in Phi-tiny-MoE. Weights are f32. No tokenizer.
    pub(crate) fn new() -> Self {
        let config = json!({
            "model_type": "phimoe", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4,
            "intermediate_size": 32, "max_position_embeddings": 128, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5, "router_jitter_noise": 0.01, "sliding_window": 100,
            "bos_token_id": 1, "eos_token_id": 3,
        });
        let parsed =
            PhimoeConfig::from_json_bytes(Path::new("c"), config.to_string().as_bytes()).unwrap();
        let mut rng = Rng::new(1);
        let tensors = catalogue(&parsed)
            .map(|id| {
                let (rows, cols) = id.shape(&parsed);
                let shape = if id.is_vector() { vec![cols] } else { vec![rows, cols] };
                let data = (0..rows * cols).flat_map(|_| rng.normal().to_le_bytes()).collect();
                Tensor { name: id.hf_name(), dtype: Dtype::F32, shape, data }
            })
            .collect();
        Self { dir: tempfile::tempdir().unwrap(), config, tensors }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The tensor of that name.
    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).expect("a tensor of the model")
    }

    /// Writes config and weights.
    pub(crate) fn save(&self) {
        self.put("config.json", self.config.to_string());
        self.save_weights("model.safetensors", &self.tensors);
    }

    pub(crate) fn save_weights(&self, name: &str, tensors: &[Tensor]) {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|t| safetensors::Tensor {
                name: &t.name,
                dtype: t.dtype,
                shape: &t.shape,
                data: &t.data,
            })
            .collect();
        safetensors::write(&self.file(name), &tensors, &BTreeMap::new()).unwrap();
    }

    /// Writes a file of the folder.
    pub(crate) fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.file(name), content).unwrap();
    }

    /// Writes the model, which must be valid, as `m.gguf` in its folder.
    pub(crate) fn save_gguf(&self, matrices: DType) -> PathBuf {
        self.save();
        let path = self.file("m.gguf");
        let types = ConvertTypes { matrices, output: matrices };
        convert(&Checkpoint::open(self.path()).unwrap(), &path, types, |_| true).unwrap();
        path
    }

    /// The message with which the folder is refused; see [`Self::message`].
    pub(crate) fn refused(&self) -> String {
        self.message(Checkpoint::open(self.path()))
    }

    /// The message of an error, with `DIR` for the model's folder.
    pub(crate) fn message<T>(&self, result: Result<T, ModelError>) -> String {
        one_line(result).replace(self.path().to_str().unwrap(), "DIR")
    }
}

/// The message of an error; it has one line.
pub(crate) fn one_line<T>(result: Result<T, ModelError>) -> String {
    let message = result.err().expect("an error").to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.len() < 1500, "{message}");
    message
}
