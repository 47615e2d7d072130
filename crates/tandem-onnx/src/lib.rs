//! PhiMoE as ONNX.
//!
//! [`export()`] writes a model as an ONNX graph of standard operators, SparseMixer included, with its weights in a file
//! beside it.
#![forbid(unsafe_code)]

mod data;
pub mod export;
mod graph;
mod phimoe;
mod proto;

pub use export::{ExportOptions, Exported, export};
pub use phimoe::WeightType;
