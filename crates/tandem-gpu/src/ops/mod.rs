//! The operations of a forward pass, as `tandem_cpu::ops` has them: activations are f32, row-major, one row per token.
//!
//! Every operation is enqueued and returns. Memory that does not fit together is an error of the program, and panics
//! before anything is enqueued: a kernel never leaves the memory it is given.
#![allow(unsafe_code)]

mod activations;
mod attention;
mod elementwise;
mod experts;
mod kv;
mod matmul;
mod norm;
mod rows;

pub use activations::{Precision, Quantized, QuantizedRoom, QuantizedVec};
pub use attention::{Heads, KvRegion, attention_heads_fault, attention_spans};
pub use elementwise::{argmax, silu_mul, silu_mul_quantized};
pub use experts::{Uses, UsesOnCpu, UsesVec, sparsemixer};
pub use kv::{KvPages, PageTable};
pub use matmul::{
    Dense, ExpertInput, ExpertStarts, ExpertWeights, Output, PackedWeights, matmul, matmul_all,
    matmul_experts,
};
pub use norm::{layer_norm, layer_norm_quantized};
pub use rows::{
    FloatExperts, FloatWeights, Table, embedding, has_float_kernels, matmul_experts_rows,
    matmul_rows,
};

use crate::path::GROUP;

/// The sources of all operations.
pub(crate) mod sources {
    pub(crate) use super::activations::QUANTIZE;
    pub(crate) use super::attention::{ATTENTION, ROPE};
    pub(crate) use super::elementwise::{ARGMAX, ELEMENTWISE, SILU_QUANTIZE};
    pub(crate) use super::experts::{GATHER, GROUPING, ROUTER};
    pub(crate) use super::matmul::MATMUL;
    pub(crate) use super::norm::{LAYER_NORM, NORM_QUANTIZE};
    pub(crate) use super::rows::{EMBEDDING, MATVEC_ROWS};
}

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
