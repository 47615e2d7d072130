//! See the crate's description.
#![forbid(unsafe_code)]

pub mod chat;
pub mod detokenize;
mod error;
pub mod tokenizer;

pub use error::{ModelError, Result};
