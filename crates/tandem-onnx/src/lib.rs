//! PhiMoE as ONNX.
//!
//! [`export()`] writes a model as an ONNX graph of standard operators, SparseMixer included, with its weights in a file
//! beside it, and `onnxruntime` (a feature) runs that with ONNX Runtime. [`analysis`] says what ONNX and ONNX Runtime have for each operation, and where a machine should compute it.
#![forbid(unsafe_code)]

pub mod analysis;
mod data;
pub mod export;
mod graph;
#[cfg(feature = "onnxruntime")]
pub mod onnxruntime;
mod phimoe;
mod proto;

pub use export::{ExportOptions, Exported, export};
pub use graph::OPSET;
pub use phimoe::WeightType;
