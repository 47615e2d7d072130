//! The operations of a forward pass, as `tandem_cpu::ops` has them: activations are f32, row-major, one row per token.
//!
//! Every operation is enqueued and returns. Memory that does not fit together is an error of the program, and panics
//! before anything is enqueued: a kernel never leaves the memory it is given.
#![allow(unsafe_code)]

mod activations;
mod matmul;
mod norm;

pub use activations::{Precision, Quantized, QuantizedVec};
pub use matmul::{Output, PackedWeights, matmul};
pub use norm::layer_norm;

use crate::path::GROUP;

/// Every kernel's work-group.
const LOCAL: [usize; 3] = [GROUP, 1, 1];

/// How many tokens `len` numbers are, at `width` numbers a token.
///
/// # Panics
/// When they are no whole number of tokens.
fn tokens(what: &str, len: usize, width: usize) -> usize {
    assert!(width > 0 && len.is_multiple_of(width), "{what}: {len} numbers are no rows of {width}");
    len / width
}
