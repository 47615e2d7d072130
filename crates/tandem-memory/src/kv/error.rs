//! What can go wrong with a cache.

use super::KV_BLOCK;
use crate::aligned::AllocError;

/// Why the cache could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// A dimension is zero, or the cache's size overflows.
    #[error(
        "KV cache of {layers} layers x {kv_heads} KV heads x {capacity} tokens x {head_dim}: \
         every dimension must be at least 1 and their product addressable"
    )]
    Shape {
        /// Layers.
        layers: usize,
        /// KV heads of a layer.
        kv_heads: usize,
        /// Numbers of one head's key.
        head_dim: usize,
        /// Tokens.
        capacity: usize,
    },
    /// Heads are not of whole blocks.
    #[error(
        "KV cache in q8_0: head_dim: expected a multiple of {KV_BLOCK}, found {0}: this model needs an f16 or f32 cache"
    )]
    Blocks(
        /// Numbers of one head's key.
        usize,
    ),
    /// The memory could not be had.
    #[error("KV cache: {0}")]
    Alloc(#[from] AllocError),
    /// The tokens do not fit.
    #[error("KV cache is full: {needed} tokens needed, room for {capacity}")]
    Full {
        /// Tokens that the sequence would have.
        needed: usize,
        /// Tokens that the cache has room for.
        capacity: usize,
    },
    /// Others have the pool's pages.
    #[error(
        "KV pages are used up: {needed} more needed, {free} of {pages} free: sequences must end before this one goes on"
    )]
    NoPages {
        /// Pages that the sequence needs besides its own.
        needed: usize,
        /// Pages that nobody has.
        free: usize,
        /// Pages in all.
        pages: usize,
    },
    /// A write that would leave a hole, or is of the wrong size.
    #[error("KV cache: {what}: expected {expected}, found {found}")]
    Write {
        /// What was wrong.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What came.
        found: usize,
    },
}
