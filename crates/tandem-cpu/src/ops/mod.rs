//! The operations of a forward pass.
//!
//! Activations are f32, row-major, one row per token: `[token][feature]`. Shapes are the model's affair and
//! checked when it is loaded; an operation that is handed slices that do not fit together panics with both
//! sizes, as that is an error of the program.

mod activations;
mod attention;
mod bytes;
mod elementwise;
mod matmul;
mod matrix;
mod norm;
mod rope;
mod weights;

pub use activations::{Input, Precision, QuantizedActivations};
pub use attention::{Queries, Sequence, attention, attention_all, store_kv};
pub use bytes::copy_bytes;
pub use elementwise::{add, add_scaled, add_weighted_rows, argmax, join_rows, silu_mul};
pub use matmul::{Largest, Product, announce, matmul, matmul_all};
pub use matrix::MatrixRef;
pub use norm::LayerNorm;
pub use rope::Rope;
pub use weights::Weights;

/// How many tokens `len` numbers are, at `width` numbers a token.
///
/// # Panics
/// When they are no whole number of tokens.
fn tokens(what: &str, len: usize, width: usize) -> usize {
    assert!(width > 0 && len.is_multiple_of(width), "{what}: {len} numbers are no rows of {width}");
    len / width
}
