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
//!
//! With as many tokens at a time as there are registers for, loads, multiplications and taking quants apart go on side by
//! side, and multiplications are what takes the time.

/// Takes tokens in batches of the sizes given, the largest first, and hands each batch to `dots`.
///
/// A macro because the batch size is a parameter of the kernel's type.
#[cfg(target_arch = "x86_64")]
macro_rules! in_batches {
    ($tokens:ident, $tiles:expr, $dots:ident, $($size:literal),+) => {{
        $(while let Some((x, sums)) = $tokens.take::<$size>() {
            $dots($tiles, x, sums);
        })+
    }};
}

/// Has the compiler finish these sums, vectors of a class of registers, before what comes after. It otherwise computes the
/// whole block of one token after the other's, and has no registers for all that several tokens share.
///
/// A macro because only the caller has the registers.
#[cfg(target_arch = "x86_64")]
macro_rules! in_this_order {
    ($class:ident, $sums:expr) => {
        for sum in $sums.as_flattened_mut() {
            let mut kept = *sum;
            // SAFETY: there is no instruction in it.
            unsafe {
                std::arch::asm!(
                    "/* {0} */",
                    inout($class) kept,
                    options(nomem, nostack, preserves_flags)
                );
            }
            *sum = kept;
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
mod generic;

use half::f16;
use tandem_memory::packed::{BLOCK_COLS, TILE_ROWS};
use tandem_memory::{PackedType, QuantizedBlock};

pub(super) use generic::Generic;
#[cfg(target_arch = "x86_64")]
pub(super) use {avx2::Avx2, avx512::Avx512, avxvnni::AvxVnni};

/// Sums of one token for the rows of a tile.
pub(crate) type TileSums = [f32; TILE_ROWS];

/// How a tile's quants lie in memory.
#[derive(Clone, Copy, Debug)]
enum Quants {
    /// Packed, two in a byte.
    Q4_0,
    /// Those, offset and all, in the order of q8_0 and a byte each: what [`PackedKernels::widen`] makes.
    WideQ4_0,
    /// Packed.
    Q8_0,
}

impl Quants {
    /// Bytes of a block's quants in a tile.
    const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => PackedType::Q4_0.quant_bytes(),
            Self::WideQ4_0 => WIDE_BYTES,
            Self::Q8_0 => PackedType::Q8_0.quant_bytes(),
        }
    }
}

/// Bytes of a block's quants with a byte each.
pub(crate) const WIDE_BYTES: usize = TILE_ROWS * BLOCK_COLS;

/// A tile of packed weights.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    kind: Quants,
    /// `[block][group][row][4 bytes]`.
    quants: &'a [u8],
    /// `[block][row]`.
    scales: &'a [TileScales],
}

/// Tiles that follow each other in memory.
pub(crate) struct Tiles<'a> {
    /// All of the tiles as one.
    all: Tile<'a>,
    /// Blocks of each tile.
    blocks: usize,
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
        let kind = match kind {
            PackedType::Q4_0 => Quants::Q4_0,
            PackedType::Q8_0 => Quants::Q8_0,
        };
        Self::of(kind, blocks, quants, scales)
    }

    /// As [`Self::new`], of q4_0 tiles whose quants have been [widened](PackedKernels::widen).
    pub(crate) fn wide(blocks: usize, quants: &'a [u8], scales: &'a [f16]) -> Self {
        Self::of(Quants::WideQ4_0, blocks, quants, scales)
    }

    fn of(kind: Quants, blocks: usize, quants: &'a [u8], scales: &'a [f16]) -> Self {
        let (scales, rest) = scales.as_chunks::<TILE_ROWS>();
        assert!(rest.is_empty(), "scales of whole blocks");
        assert_eq!(quants.len(), scales.len() * kind.bytes(), "quants of {kind:?}");
        assert!(scales.len().is_multiple_of(blocks), "tiles of {blocks} blocks");
        Self { all: Tile { kind, quants, scales }, blocks }
    }

    /// How many tiles these are.
    pub(crate) fn len(&self) -> usize {
        self.all.scales.len() / self.blocks
    }

    fn tile(&self, index: usize) -> Tile<'a> {
        let Tile { kind, quants, scales } = self.all;
        let blocks = index * self.blocks..(index + 1) * self.blocks;
        let bytes = kind.bytes();
        let quants = &quants[blocks.start * bytes..blocks.end * bytes];
        Tile { kind, quants, scales: &scales[blocks] }
    }
}

/// The inner loops of products with packed weights.
pub(crate) trait PackedKernels: Sync {
    /// Quantizes activations; `x` has 32 for each block.
    fn quantize(&self, x: &[f32], out: &mut [QuantizedBlock]);

    /// Tokens that are best taken at a time: as many as there are registers for.
    fn batch(&self) -> usize;

    /// Gives each quant of packed q4_0 blocks a byte of its own, offset and all, in the order of q8_0: what every batch of
    /// tokens would have to do again, an eighth of its arithmetic (AVX2).
    ///
    /// # Panics
    /// When `out` is not twice as long as `quants`, or they are not whole blocks.
    fn widen(&self, quants: &[u8], out: &mut [u8]) {
        widen(quants, out);
    }

    /// Leaves in each token's sums the dot products of the tile's rows and the token's activations. Every token has as
    /// many blocks as the tile.
    fn tile_dots(&self, tile: Tile<'_>, tokens: Tokens<'_, '_, 1>);

    /// As [`Self::tile_dots`], for two tiles with as many blocks: with registers for both, each of a token's numbers is
    /// loaded once for the two.
    fn pair_dots(&self, tiles: [Tile<'_>; 2], tokens: Tokens<'_, '_, 2>) {
        for (tile, sums) in tiles.into_iter().zip(tokens.sums) {
            self.tile_dots(tile, Tokens { x: tokens.x, sums: [sums] });
        }
    }

    /// Leaves in `sums[tile][token][row]` the dot product of a row of a tile and the activations of a token. Tiles that come
    /// `from_memory` are taken one after the other: that is the order that memory is read in.
    ///
    /// # Panics
    /// When a token has not as many blocks as a tile, or there is not one sum for each.
    fn dots(
        &self,
        tiles: &Tiles<'_>,
        from_memory: bool,
        x: &[&[QuantizedBlock]],
        sums: &mut [TileSums],
    ) {
        assert!(x.iter().all(|x| x.len() == tiles.blocks), "blocks of every token");
        assert_eq!(sums.len(), tiles.len() * x.len(), "sums of every tile and token");
        if x.is_empty() {
            return;
        }
        let together = if from_memory { 1 } else { 2 };
        for (n, sums) in sums.chunks_mut(together * x.len()).enumerate() {
            let first = tiles.tile(together * n);
            match sums.split_at_mut(x.len()) {
                (sums, []) => self.tile_dots(first, Tokens { x, sums: [sums] }),
                (sums, more) => {
                    let tiles = [first, tiles.tile(together * n + 1)];
                    self.pair_dots(tiles, Tokens { x, sums: [sums, more] });
                }
            }
        }
    }

    /// Multiplies and adds 8-bit numbers that never leave registers, with the instructions that [`Self::dots`] uses;
    /// answers how many multiplications that were. For measuring what the arithmetic allows.
    fn multiply_adds(&self, rounds: usize) -> usize;
}

/// As [`PackedKernels::widen`], for whichever instructions the caller is compiled with.
#[inline(always)]
fn widen(quants: &[u8], out: &mut [u8]) {
    const PACKED: usize = PackedType::Q4_0.quant_bytes();
    let (quants, rest) = quants.as_chunks::<PACKED>();
    let (out, out_rest) = out.as_chunks_mut::<WIDE_BYTES>();
    assert!(rest.is_empty() && out_rest.is_empty() && quants.len() == out.len(), "whole blocks");
    for (quants, out) in quants.iter().zip(out) {
        let (low, high) = out.split_at_mut(PACKED);
        for ((low, high), quants) in low.iter_mut().zip(high).zip(quants) {
            (*low, *high) = (quants & 15, quants >> 4);
        }
    }
}

/// Tokens that count as few: weights that come from memory take longer than the arithmetic.
const FEW: usize = 2;

/// Sums that [`PackedKernels::multiply_adds`] adds to in turn: more than the instructions' latency times the units
/// that execute them, so that none waits for another.
const CHAINS: usize = 12;

/// Tokens and their sums for some tiles, to be taken as many at a time as there are registers for. Made by
/// [`PackedKernels::dots`] alone, which has checked that each token has as many blocks as each tile.
pub(crate) struct Tokens<'a, 'x, const TILES: usize> {
    x: &'a [&'x [QuantizedBlock]],
    /// Of each tile, one for each token.
    sums: [&'a mut [TileSums]; TILES],
}

/// `T` tokens, and their sums for each of some tiles.
type Batch<'a, 'x, const TILES: usize, const T: usize> =
    (&'a [&'x [QuantizedBlock]; T], [&'a mut [TileSums; T]; TILES]);

impl<'a, 'x, const TILES: usize> Tokens<'a, 'x, TILES> {
    /// The next `T` tokens, if there are as many.
    fn take<const T: usize>(&mut self) -> Option<Batch<'a, 'x, TILES, T>> {
        let (x, rest) = self.x.split_first_chunk()?;
        self.x = rest;
        let sums = self.sums.each_mut().map(|sums| {
            let (first, rest) =
                std::mem::take(sums).split_first_chunk_mut().expect("a sum for each token");
            *sums = rest;
            first
        });
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
