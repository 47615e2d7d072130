//! The KV cache: keys and values of sequences, for every layer, in pages.
//!
//! A [`KvPool`] is one allocation, cut into pages of [`PAGE_TOKENS`] tokens. A sequence's [`KvCache`] is a list of pages,
//! taken from the pool as the sequence grows: it occupies what it uses, not what it might. Sequences that begin alike have
//! pages in common. A page that several have is read by all and written by none: whoever must write takes a copy first.
//!
//! A page holds all layers of its tokens. Within a layer, its keys lie as `[kv_head][position][head_dim]`, and so do its
//! values: attention of one head reads one unbroken run of memory in each page. In 8 bits the scales of a page's keys
//! follow their quants, as `[kv_head][position][head_dim / 32]`, and so for values: quants stay aligned, and a device reads
//! each of the two as one array.
//!
//! Each layer counts its own positions, and a cache is as long as its shortest layer. A forward pass that
//! stops halfway therefore leaves no half-written token: [`KvCache::len`] has not moved, and the next write
//! overwrites what the stopped one left.

mod cache;
mod data;
mod error;
mod layer;
mod pool;
mod shape;
#[cfg(test)]
mod tests;
mod write;

pub use cache::KvCache;
pub use data::KvData;
pub use error::KvError;
pub use layer::KvLayer;
pub use pool::{KvPage, KvPool, KvPoolWatch};
pub use shape::{KvPlace, KvShape, PAGE_TOKENS};
pub use write::KvPart;

use half::f16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// IEEE 754 binary16: half the memory traffic; values beyond 65504 become infinite.
    F16,
    /// IEEE 754 binary32: what the exact path computes with.
    F32,
    /// 8 bits, with an f16 scale for each [`KV_BLOCK`] numbers of a head: a bit more than half of f16. `head_dim` must be
    /// a multiple of [`KV_BLOCK`]. A block with a number that is not finite becomes NaN as a whole.
    Q8_0,
}

/// Numbers that share a scale in [`KvType::Q8_0`].
pub const KV_BLOCK: usize = 32;

impl KvType {
    /// Bytes of `count` numbers with their scales. The count is of whole blocks.
    pub const fn bytes(self, count: usize) -> usize {
        let [numbers, scales] = self.bytes_of(count);
        numbers + scales
    }

    /// Bytes of `count` numbers and of their scales. The count is of whole blocks.
    const fn bytes_of(self, count: usize) -> [usize; 2] {
        match self {
            Self::F16 => [2 * count, 0],
            Self::F32 => [4 * count, 0],
            Self::Q8_0 => [count, count / KV_BLOCK * size_of::<f16>()],
        }
    }
}
