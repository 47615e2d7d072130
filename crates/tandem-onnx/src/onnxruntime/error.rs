//! Why a model cannot be run with ONNX Runtime.

use std::path::{Path, PathBuf};

use tandem_cpu::libraries::LibraryMissing;
use tandem_formats::FormatError;
use tandem_model::ModelError;

/// Why a model cannot be run with ONNX Runtime. Messages are one line.
#[derive(Debug, thiserror::Error)]
pub enum OnnxRuntimeError {
    /// There is no library.
    #[error(transparent)]
    Missing(#[from] LibraryMissing),
    /// The library is too old.
    #[error(
        "ONNX Runtime: {path}: expected version {expected} or later, found {found}; \
         `pip install --upgrade onnxruntime` brings a newer one"
    )]
    Version {
        /// The library's file.
        path: PathBuf,
        /// The oldest version that is known to work.
        expected: String,
        /// The library's.
        found: String,
    },
    /// The library cannot be opened.
    #[error("ONNX Runtime: {path}: {message}")]
    Library {
        /// The library's file.
        path: PathBuf,
        /// The loader's words.
        message: String,
    },
    /// The export's files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The export's small files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What ONNX Runtime says.
    #[error("{path}: ONNX Runtime: {message}")]
    Runtime {
        /// The graph's file.
        path: PathBuf,
        /// Its words.
        message: String,
    },
}

impl OnnxRuntimeError {
    /// What ONNX Runtime says of a graph, in one line.
    pub(super) fn runtime<R>(path: &Path, error: &ort::Error<R>) -> Self {
        Self::Runtime { path: path.to_owned(), message: one_line(error.message()) }
    }
}

/// Without line breaks.
pub(super) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
