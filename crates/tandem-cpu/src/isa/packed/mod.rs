//! The inner loop of products with packed weights: a tile of 16 rows times several tokens' 8-bit activations.
//!
//! Every instruction set computes the same numbers in the same order. For one row, one token and one block of 32
//! columns the dot product of quants is a whole number, exact in whatever way it is added up. It is converted to
//! f32 (exact: it is less than 2^20), multiplied with both scales and added to the running sum of the row, block
//! after block. So a result depends on the row and the token alone: not on how many tokens are computed together,
//! nor on how many threads.
//!
//! The row's sum never crosses vector lanes, since a lane is a row ([`tandem_memory::packed`]). What is left to do
//! per block and token is one conversion and a multiply-add for a whole vector of rows.
//!
//! Quants of q4_0 have an offset of 8. `sum((q - 8) x) = sum(q x) - 8 sum(x)`, and the second term is known from
//! quantizing the activations ([`QuantizedBlock::offset`]): it is where the sum starts.

/// Takes a tile's tokens in batches of the sizes given, the largest first, and hands each batch to `dots`.
///
/// A macro because the batch size is a parameter of the kernel's type.
#[cfg(target_arch = "x86_64")]
macro_rules! in_batches {
    ($tokens:ident, $tile:ident, $dots:ident, $($size:literal),+) => {{
        $(while let Some((x, sums)) = $tokens.take() {
            $dots::<$size>($tile, x, sums);
        })+
    }};
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod generic;

use std::ops::Range;

use half::f16;
use tandem_memory::PackedType;
use tandem_memory::packed::{BLOCK_COLS, TILE_ROWS};

pub(super) use generic::Generic;
#[cfg(target_arch = "x86_64")]
pub(super) use {avx2::Avx2, avx512::Avx512, avxvnni::AvxVnni};

/// 32 activations in 8 bits: `x = scale * value`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct QuantizedBlock {
    /// From -127 to 127.
    pub(crate) values: [i8; BLOCK_COLS],
    /// NaN where an activation was not finite: so is every result then.
    pub(crate) scale: f32,
    /// -8 times the sum of the values: what the offset of 4-bit weights adds to a dot product.
    pub(crate) offset: i32,
}

/// Sums of one token for the rows of a tile.
pub(crate) type TileSums = [f32; TILE_ROWS];

/// Some blocks of a tile of packed weights.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    kind: PackedType,
    /// `[block][group][row][4 bytes]`.
    quants: &'a [u8],
    /// `[block][row]`.
    scales: &'a [TileScales],
}

/// The same blocks of some tiles that follow each other in memory.
#[derive(Clone)]
pub(crate) struct Tiles<'a> {
    /// All of the tiles as one.
    all: Tile<'a>,
    /// Blocks that a tile has in memory.
    stride: usize,
    /// Those of them that are meant.
    blocks: Range<usize>,
}

/// Scales of a block for the rows of a tile.
pub(crate) type TileScales = [f16; TILE_ROWS];

impl<'a> Tiles<'a> {
    /// Whole tiles of `blocks` blocks, as [`tandem_memory::PackedMatrix::tiles`] gives them.
    pub(crate) fn new(
        kind: PackedType,
        blocks: usize,
        (quants, scales): (&'a [u8], &'a [f16]),
    ) -> Self {
        let (scales, rest) = scales.as_chunks::<TILE_ROWS>();
        assert!(rest.is_empty(), "scales of whole blocks");
        assert_eq!(quants.len(), scales.len() * kind.quant_bytes(), "quants of {kind:?}");
        assert!(scales.len().is_multiple_of(blocks), "tiles of {blocks} blocks");
        Self { all: Tile { kind, quants, scales }, stride: blocks, blocks: 0..blocks }
    }

    /// Some blocks of each tile.
    pub(crate) fn part(&self, blocks: Range<usize>) -> Self {
        assert!(blocks.end <= self.stride, "blocks {blocks:?} of {}", self.stride);
        Self { blocks, ..*self }
    }

    /// Blocks of each tile.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.all.kind.quant_bytes() + size_of::<TileScales>()
    }

    /// How many tiles these are.
    pub(crate) fn len(&self) -> usize {
        self.all.scales.len() / self.stride
    }

    fn iter(&self) -> impl Iterator<Item = Tile<'a>> {
        let Self { all, stride, blocks } = self.clone();
        let part = move |n| all.part(n * stride + blocks.start..n * stride + blocks.end);
        (0..self.len()).map(part)
    }
}

impl Tile<'_> {
    fn part(&self, blocks: Range<usize>) -> Self {
        let bytes = self.kind.quant_bytes();
        Self {
            kind: self.kind,
            quants: &self.quants[blocks.start * bytes..blocks.end * bytes],
            scales: &self.scales[blocks],
        }
    }
}

/// The inner loops of products with packed weights.
pub(crate) trait PackedKernels: Sync {
    /// Quantizes activations; `x` has 32 for each block.
    fn quantize(&self, x: &[f32], out: &mut [QuantizedBlock]);

    /// Adds to each token's sums the dot products of the tile's rows and the token's activations. Every token has as
    /// many blocks as the tile.
    fn tile_dots(&self, tile: Tile<'_>, tokens: Tokens<'_, '_>);

    /// Adds to `sums[tile][token][row]` the dot product of a row of a tile and the activations of a token.
    ///
    /// # Panics
    /// When a token has not as many blocks as a tile, or there is not one sum for each.
    fn dots(&self, tiles: &Tiles<'_>, x: &[&[QuantizedBlock]], sums: &mut [TileSums]) {
        assert!(x.iter().all(|x| x.len() == tiles.blocks()), "blocks of every token");
        assert_eq!(sums.len(), tiles.len() * x.len(), "sums of every tile and token");
        if x.is_empty() {
            return;
        }
        for (tile, sums) in tiles.iter().zip(sums.chunks_exact_mut(x.len())) {
            self.tile_dots(tile, Tokens { x, sums });
        }
    }

    /// Multiplies and adds 8-bit numbers that never leave registers, with the instructions that [`Self::dots`] uses;
    /// answers how many multiplications that were. For measuring what the arithmetic allows.
    fn multiply_adds(&self, rounds: usize) -> usize;
}

/// Sums that [`PackedKernels::multiply_adds`] adds to in turn: more than the instructions' latency times the units
/// that execute them, so that none waits for another.
const CHAINS: usize = 12;

/// Tokens and their sums for a tile, to be taken as many at a time as there are registers for. Made by
/// [`PackedKernels::dots`] alone, which has checked that each token has as many blocks as the tile.
pub(crate) struct Tokens<'a, 'x> {
    x: &'a [&'x [QuantizedBlock]],
    sums: &'a mut [TileSums],
}

impl<'a, 'x> Tokens<'a, 'x> {
    /// The next `T` tokens, if there are as many.
    fn take<const T: usize>(
        &mut self,
    ) -> Option<(&'a [&'x [QuantizedBlock]; T], &'a mut [TileSums; T])> {
        let (x, x_rest) = self.x.split_first_chunk()?;
        let (sums, sums_rest) = std::mem::take(&mut self.sums).split_first_chunk_mut()?;
        (self.x, self.sums) = (x_rest, sums_rest);
        Some((x, sums))
    }
}

/// What must not be divided by: activations of a block that are all smaller count as 0.
const TINY: f32 = 1e-36;

/// The scale of a block's activations and its inverse, from the bits of the largest magnitude. None where the block
/// holds no numbers that could be quantized: then `scale` is all there is to say.
#[inline(always)]
fn scales_of(largest: u32) -> Result<(f32, f32), f32> {
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        Err(f32::NAN)
    } else if largest < TINY {
        Err(0.0)
    } else {
        Ok((largest / 127.0, 127.0 / largest))
    }
}
