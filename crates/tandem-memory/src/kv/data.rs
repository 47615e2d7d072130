//! Stored numbers, as they are read.

use std::ops::Range;

use half::f16;
use half::slice::HalfBitsSliceExt;

use super::{KV_BLOCK, KvType};

/// Stored numbers of any type.
#[derive(Clone, Copy, Debug)]
pub enum KvData<'a> {
    /// Stored as f16.
    F16(&'a [f16]),
    /// Stored as f32.
    F32(&'a [f32]),
    /// Stored in 8 bits.
    Q8_0 {
        /// What is multiplied with a scale.
        quants: &'a [i8],
        /// One for every [`KV_BLOCK`] quants.
        scales: &'a [f16],
    },
}

impl<'a> KvData<'a> {
    pub(super) fn new(kind: KvType, numbers: &'a [u8], scales: &'a [u8]) -> Self {
        let halves = |bytes| bytemuck::cast_slice::<u8, u16>(bytes).reinterpret_cast();
        match kind {
            KvType::F32 => Self::F32(bytemuck::cast_slice(numbers)),
            KvType::F16 => Self::F16(halves(numbers)),
            KvType::Q8_0 => {
                Self::Q8_0 { quants: bytemuck::cast_slice(numbers), scales: halves(scales) }
            }
        }
    }

    /// A part of it; in 8 bits, of whole blocks.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F16(data) => Self::F16(&data[range]),
            Self::F32(data) => Self::F32(&data[range]),
            Self::Q8_0 { quants, scales } => Self::Q8_0 {
                scales: &scales[range.start / KV_BLOCK..range.end / KV_BLOCK],
                quants: &quants[range],
            },
        }
    }

    /// How many numbers there are.
    pub fn len(self) -> usize {
        match self {
            Self::F16(data) => data.len(),
            Self::F32(data) => data.len(),
            Self::Q8_0 { quants, .. } => quants.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Bytes of its numbers, without scales.
    pub fn n_bytes(self) -> usize {
        match self {
            Self::F16(data) => size_of_val(data),
            Self::F32(data) => size_of_val(data),
            Self::Q8_0 { quants, .. } => size_of_val(quants),
        }
    }

    /// The first byte of its numbers: where memory is asked for ahead of reading.
    pub fn start(self) -> *const u8 {
        match self {
            Self::F16(data) => data.as_ptr().cast(),
            Self::F32(data) => data.as_ptr().cast(),
            Self::Q8_0 { quants, .. } => quants.as_ptr().cast(),
        }
    }
}
