//! Activations in 8 bits: the input of products with packed weights.

use tandem_memory::QuantizedBlock;
use tandem_memory::packed::BLOCK_COLS;

use super::LOCAL;
use crate::error::Result;
use crate::gpu::{Gpu, GpuVec, Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

pub(crate) const QUANTIZE: Source = Source {
    file: "quantize.cl",
    text: concat!(
        include_str!("../../kernels/quantized.cl"),
        include_str!("../../kernels/quantize.cl")
    ),
};
/// Numbers that a work-item quantizes.
pub(super) const NUMBERS: usize = 4;

/// How exactly activations are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// To 8 bits.
    Bits8,
    /// To 16 bits: 8 bits, and 8 more for what those leave out, in a plane of their own.
    Bits16,
}

impl Precision {
    /// Planes of 8 bits.
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
    blocks: GpuVec<QuantizedBlock>,
}

/// Quantized activations that are lent to a device, `[plane][token][block]` as [`QuantizedBlock`] says.
#[derive(Clone, Debug)]
pub struct Quantized<'scope> {
    blocks: Region<'scope, QuantizedBlock>,
    cols: usize,
    tokens: usize,
    precision: Precision,
}

/// Room for quantized activations that is lent to a device. What was there before is gone once it is filled: everything
/// that uses it must have been enqueued.
#[derive(Clone, Debug)]
pub struct QuantizedRoom<'scope>(RegionMut<'scope, QuantizedBlock>);

impl QuantizedVec {
    /// Room for so many activations, at 8 or 16 bits each.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(gpu: &Gpu, activations: usize, precision: Precision) -> Result<Self> {
        let blocks = activations.div_ceil(BLOCK_COLS) * precision.planes();
        Ok(Self { blocks: gpu.zeros(blocks)? })
    }

    /// Quantizes `x`, `[token][cols]`, into this room.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// As [`QuantizedRoom::fill`].
    pub fn fill<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
        x: &Region<'_, f32>,
        cols: usize,
        precision: Precision,
    ) -> Result<Quantized<'scope>> {
        self.lend(scope)?.fill(scope, x, cols, precision)
    }

    /// Lends the room, with nothing in it yet.
    ///
    /// # Errors
    /// When it belongs to another device.
    pub fn lend<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
    ) -> Result<QuantizedRoom<'scope>> {
        Ok(QuantizedRoom::new(scope.vec_mut(&mut self.blocks)?))
    }

    /// What the 8 or 16 bits stand for, `[token][cols]`, of so many tokens: as many as were quantized.
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
        let blocks = gpu.read(&self.blocks)?;
        let count = tokens * cols / BLOCK_COLS;
        let mut x = vec![0.0; tokens * cols];
        for plane in blocks.chunks(count).take(precision.planes()) {
            let values = plane.iter().flat_map(QuantizedBlock::dequantize);
            x.iter_mut().zip(values).for_each(|(x, value)| *x += value);
        }
        Ok(x)
    }
}

impl<'scope> QuantizedRoom<'scope> {
    /// Room in memory of the caller's.
    pub fn new(blocks: RegionMut<'scope, QuantizedBlock>) -> Self {
        Self(blocks)
    }

    /// The room as what it holds, once it is filled with `numbers` activations.
    ///
    /// # Panics
    /// As [`Quantized::new`].
    pub fn holding(&self, numbers: usize, cols: usize, precision: Precision) -> Quantized<'scope> {
        Quantized::new((*self.0).clone(), numbers, cols, precision)
    }

    /// Quantizes `x`, `[token][cols]`, into this room.
    ///
    /// A block that holds a number that is not finite is NaN as a whole.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// As [`Quantized::new`].
    pub fn fill(
        &self,
        scope: &Scope<'_, '_>,
        x: &Region<'_, f32>,
        cols: usize,
        precision: Precision,
    ) -> Result<Quantized<'scope>> {
        let filled = self.holding(x.len(), cols, precision);
        let count = x.len() / NUMBERS;
        let defines = [("PLANES", precision.planes())];
        let global = [count.next_multiple_of(GROUP), 1, 1];
        let work =
            Work { source: QUANTIZE, name: "quantize", defines: &defines, global, local: LOCAL };
        // SAFETY: `x` has `count` fours; the room holds their blocks for each plane, as `holding` has checked.
        unsafe { scope.launch(work, &[x.into(), (&self.0).into(), count.into()])? };
        Ok(filled)
    }

    pub(super) fn blocks(&self) -> &RegionMut<'scope, QuantizedBlock> {
        &self.0
    }
}

impl<'scope> Quantized<'scope> {
    /// The first of these blocks, which hold `numbers` activations in rows of `cols`.
    ///
    /// # Panics
    /// When `cols` is no whole number of blocks of 32, `numbers` no whole number of rows, or there are too few blocks.
    pub fn new(
        blocks: Region<'scope, QuantizedBlock>,
        numbers: usize,
        cols: usize,
        precision: Precision,
    ) -> Self {
        assert!(cols.is_multiple_of(BLOCK_COLS), "{cols} columns are no blocks of {BLOCK_COLS}");
        let tokens = super::tokens("quantized activations", numbers, cols);
        let needed = numbers / BLOCK_COLS * precision.planes();
        assert!(needed <= blocks.len(), "{needed} blocks in room for {}", blocks.len());
        Self { blocks, cols, tokens, precision }
    }

    /// How exact they are.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Activations of a token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Planes of 8 bits.
    pub(super) fn planes(&self) -> usize {
        self.precision.planes()
    }

    pub(super) fn blocks(&self) -> &Region<'scope, QuantizedBlock> {
        &self.blocks
    }
}
