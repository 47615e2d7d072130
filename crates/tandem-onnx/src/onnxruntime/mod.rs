//! Running an export with ONNX Runtime, whose library is opened at run time.
//!
//! A process has one ONNX Runtime: the first library that is opened stays.

mod error;
mod folder;
mod library;
mod model;

pub use error::OnnxRuntimeError;
pub use folder::ExportFolder;
pub use library::{LIBRARY, OLDEST_VERSION, version};
pub use model::{OnnxModel, OnnxOptions, Provider};
