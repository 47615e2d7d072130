//! Activations in 8 bits: the input of products with packed weights.

use tandem_memory::packed::BLOCK_COLS;

use super::LOCAL;
use crate::error::Result;
use crate::gpu::{Gpu, GpuVec, Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

pub(crate) const QUANTIZE: Source =
    Source { file: "quantize.cl", text: include_str!("../../kernels/quantize.cl") };
/// Numbers that a work-item quantizes.
const NUMBERS: usize = 4;

/// How exactly activations are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// To 8 bits.
    Bits8,
    /// To 16 bits: 8 bits, and 8 more for what those leave out, in a row of their own.
    Bits16,
}

impl Precision {
    /// Rows of 8 bits that a token has.
    pub const fn planes(self) -> usize {
        match self {
            Self::Bits8 => 1,
            Self::Bits16 => 2,
        }
    }
}

/// Room for quantized activations.
#[derive(Debug)]
pub struct QuantizedVec {
    values: GpuVec<i8>,
    scales: GpuVec<f32>,
    offsets: GpuVec<i32>,
}

/// Quantized activations that are lent to a device: `[token][plane][block]`.
#[derive(Clone, Debug)]
pub struct Quantized<'scope> {
    /// 32 a block, from -127 to 127.
    values: RegionMut<'scope, i8>,
    /// One a block; NaN where an activation was not finite.
    scales: RegionMut<'scope, f32>,
    /// One a block: -8 times the sum of its values, which is what the offset of 4-bit weights adds to a product.
    offsets: RegionMut<'scope, i32>,
    cols: usize,
    tokens: usize,
    precision: Precision,
}

impl QuantizedVec {
    /// Room for so many activations, at 8 or 16 bits each.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(gpu: &Gpu, activations: usize, precision: Precision) -> Result<Self> {
        let values = activations.next_multiple_of(BLOCK_COLS) * precision.planes();
        let blocks = values / BLOCK_COLS;
        Ok(Self {
            values: gpu.zeros(values)?,
            scales: gpu.zeros(blocks)?,
            offsets: gpu.zeros(blocks)?,
        })
    }

    /// Lends the room, with nothing in it yet: to be [filled](Quantized::refill).
    ///
    /// # Errors
    /// When it belongs to another device.
    pub fn lend<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<Quantized<'scope>> {
        Ok(Quantized {
            values: scope.vec_mut(&mut self.values)?,
            scales: scope.vec_mut(&mut self.scales)?,
            offsets: scope.vec_mut(&mut self.offsets)?,
            cols: BLOCK_COLS,
            tokens: 0,
            precision: Precision::Bits8,
        })
    }

    /// Quantizes `x`, `[token][cols]`, into this room.
    ///
    /// A block that holds a number that is not finite is NaN as a whole.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When `cols` is no whole number of blocks of 32, `x` no whole number of rows, or the room too small.
    pub fn fill<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
        x: &Region<'_, f32>,
        cols: usize,
        precision: Precision,
    ) -> Result<Quantized<'scope>> {
        self.lend(scope)?.refill(scope, x, cols, precision)
    }

    /// What the 8 or 16 bits stand for, `[token][cols]`, of so many tokens.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn dequantize(
        &self,
        gpu: &Gpu,
        tokens: usize,
        cols: usize,
        precision: Precision,
    ) -> Result<Vec<f32>> {
        let (values, scales) = (gpu.read(&self.values)?, gpu.read(&self.scales)?);
        let rows: Vec<Vec<f32>> = values
            .chunks_exact(cols)
            .zip(scales.chunks_exact(cols / BLOCK_COLS))
            .take(tokens * precision.planes())
            .map(|(values, scales)| {
                let blocks = values.chunks_exact(BLOCK_COLS).zip(scales);
                blocks.flat_map(|(v, scale)| v.iter().map(move |&v| f32::from(v) * scale)).collect()
            })
            .collect();
        let sum = |planes: &[Vec<f32>], col: usize| planes.iter().map(|plane| plane[col]).sum();
        Ok(rows
            .chunks_exact(precision.planes())
            .flat_map(|planes| (0..cols).map(move |col| sum(planes, col)))
            .collect())
    }
}

impl<'scope> Quantized<'scope> {
    /// Quantizes other activations into the same room, once what uses these has been enqueued.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// As [`QuantizedVec::fill`].
    pub fn refill(
        &self,
        scope: &Scope<'_, '_>,
        x: &Region<'_, f32>,
        cols: usize,
        precision: Precision,
    ) -> Result<Self> {
        assert!(cols.is_multiple_of(BLOCK_COLS), "{cols} columns are no blocks of {BLOCK_COLS}");
        let tokens = super::tokens("activations to quantize", x.len(), cols);
        let values = x.len() * precision.planes();
        assert!(values <= self.values.len(), "{values} values in room for {}", self.values.len());
        let count = x.len() / NUMBERS;
        let defines = [("COLS", cols), ("PLANES", precision.planes())];
        let global = [count.next_multiple_of(GROUP), 1, 1];
        let work =
            Work { source: QUANTIZE, name: "quantize", defines: &defines, global, local: LOCAL };
        let (values, scales, offsets) = (&self.values, &self.scales, &self.offsets);
        // SAFETY: `x` has `count` fours; the room holds as many values for each plane, and a scale and an offset for
        // every block of them.
        unsafe {
            scope.launch(
                work,
                &[x.into(), values.into(), scales.into(), offsets.into(), count.into()],
            )?;
        }
        Ok(Self { cols, tokens, precision, ..self.clone() })
    }

    /// Activations of a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows of 8 bits that a token has.
    pub(super) fn planes(&self) -> usize {
        self.precision.planes()
    }

    pub(super) fn parts(
        &self,
    ) -> (&RegionMut<'scope, i8>, &RegionMut<'scope, f32>, &RegionMut<'scope, i32>) {
        (&self.values, &self.scales, &self.offsets)
    }
}
