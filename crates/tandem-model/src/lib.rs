//! PhiMoE models: config, tensor catalogue, checkpoints on disk, tokenizer, chat template, and the plain f32
//! forward pass that says what is correct.
#![forbid(unsafe_code)]

pub mod catalogue;
pub mod chat;
mod checkpoint;
pub mod config;
pub mod convert;
pub mod detokenize;
mod error;
#[cfg(feature = "hub")]
pub mod hub;
pub mod reencode;
pub mod reference;
pub mod router;
mod text;
pub mod tokenizer;

pub use catalogue::{TensorId, catalogue};
pub use checkpoint::{Checkpoint, ComponentSummary, Container, Entry, Outline, Summary};
pub use config::{PhimoeConfig, SpecialIds};
pub use error::{ModelError, Result};
pub use text::Text;
