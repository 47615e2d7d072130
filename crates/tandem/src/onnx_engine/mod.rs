//! A model that ONNX Runtime computes.

#[cfg_attr(feature = "onnxruntime", path = "loaded.rs")]
#[cfg_attr(not(feature = "onnxruntime"), path = "absent.rs")]
mod engine;

pub(crate) use engine::OnnxEngine;
