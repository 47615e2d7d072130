//! What a cache is made for, and how it is to be.

use serde::{Deserialize, Serialize};

use super::MATRICES;

/// Matrices begin at multiples of this many bytes.
const ALIGNMENT: usize = 64;

/// An expert of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpertId {
    /// Number of the layer.
    pub layer: usize,
    /// Number of the expert in it.
    pub expert: usize,
}

/// What a model's experts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Layers.
    pub n_layers: usize,
    /// Experts of a layer.
    pub n_experts: usize,
    /// Bytes of an expert's gate, up and down matrices, at most.
    pub matrix_bytes: [usize; MATRICES],
}

impl ExpertShape {
    /// Bytes of an expert in a cache.
    pub fn slot_bytes(&self) -> usize {
        self.offset(MATRICES)
    }

    /// Where a matrix begins in its expert's slot.
    pub(super) fn offset(&self, matrix: usize) -> usize {
        self.matrix_bytes[..matrix].iter().map(|b| b.next_multiple_of(ALIGNMENT)).sum()
    }

    /// An expert's matrices within its slot.
    pub(super) fn matrices<'a>(&self, slot: &'a mut [u8]) -> [&'a mut [u8]; MATRICES] {
        let mut rest = slot;
        self.matrix_bytes.map(|bytes| {
            let (matrix, after) =
                std::mem::take(&mut rest).split_at_mut(bytes.next_multiple_of(ALIGNMENT));
            rest = after;
            &mut matrix[..bytes]
        })
    }
}

/// Which experts are uploaded before they are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// The layer's most used so far; of equals the one used last.
    #[default]
    Predict,
    /// By number.
    Sequential,
}

/// How a cache is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of the device's memory for experts.
    pub budget: usize,
    /// Staging buffers.
    pub staging_buffers: usize,
    /// Experts of a staging buffer.
    pub experts_per_buffer: usize,
    /// Which experts are uploaded ahead; none: none.
    pub prefetch: Option<Prefetch>,
}

impl CacheOptions {
    /// Two staging buffers of two experts, and prediction.
    pub fn with_budget(budget: usize) -> Self {
        Self {
            budget,
            staging_buffers: 2,
            experts_per_buffer: 2,
            prefetch: Some(Prefetch::Predict),
        }
    }
}
