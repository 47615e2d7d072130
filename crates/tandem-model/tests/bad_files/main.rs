//! Model files that are wrong: each gives an error of one line that names file, field, what is expected and what is
//! there, and nothing panics.
//!
//! The formats themselves have such tests of their own. Here it is about what models add: files that are valid alone
//! and contradict each other, and that what the formats' errors say arrives at the user unharmed.

mod config;
mod folder;
mod gguf_bytes;
mod gguf_keys;
mod scratch;
mod tokenizer;
mod weights;
