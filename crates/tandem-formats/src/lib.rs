//! Files of weights: GGUF and safetensors, read and written, and the block formats of quantized weights.
//!
//! Knows nothing about models. Files come from strangers, so every size, offset and count is checked against
//! the file's length before anything is allocated or read.
#![forbid(unsafe_code)]

pub mod blocks;
mod dtype;
mod error;
pub mod gguf;
mod io;
pub mod safetensors;
mod text;

pub use dtype::DType;
pub use error::{FormatError, Result};
pub use io::{AtomicFile, InputFile, folder_of};
pub use text::{one_line, one_line_path};
