//! Products with packed weights: activations in 8 bits, sums in whole numbers block by block.
//!
//! With many tokens, a few tiles of 16 rows are multiplied with a few tokens at a time, a stretch of columns after the
//! other: all of that lies in the first-level cache, the tiles for all tokens of an item, and the tokens for all of the
//! tiles. Sums continue from stretch to stretch in the same order, so where a product is cut makes no difference to the
//! result. With few tokens, tiles are taken from one end to the other, as they come from memory.

use std::ops::Range;

use tandem_memory::PackedMatrix;
use tandem_memory::packed::TILE_ROWS;

use super::{Cut, Output};
use crate::isa::{PackedKernels, QuantizedBlock, TileSums, Tiles};
use crate::ops::Input;
use crate::scratch::with_scratch;

/// Rows of activations that an item has, at most. With 4096 columns they are 330 KB: a fraction of a second-level
/// cache, where they stay while tile after tile of weights comes by.
const MAX_ROWS: usize = 64;
/// Rows of activations that are taken at a time: as many as an instruction set has registers for.
const ROWS: usize = 8;
/// Tiles that are taken at a time where there are many tokens.
const TILES: usize = 4;
/// Bytes of a tile's stretch of columns: with those of the other tiles and the tokens' they fit a first-level cache of
/// 32 KB.
const STRETCH_BYTES: usize = 4608;
/// Work items a thread should find, so that threads of different speed end together.
const ITEMS_PER_THREAD: usize = 64;
/// Weights times tokens below which an item costs more to hand out than to do: half a microsecond of memory.
const MIN_WORK: usize = 1 << 14;

/// Cuts a product into ranges of tiles.
pub(super) fn cut(input: Input<'_>, cols: usize, share: usize) -> Cut {
    // In what follows tokens count twice where they have two rows of activations.
    let planes = input.planes();
    let x_rows = input.tokens(cols) * planes;
    let parts = x_rows.div_ceil(MAX_ROWS).max(1);
    let item_rows = x_rows.div_ceil(parts).next_multiple_of(ROWS).max(ROWS);
    let tile_work = TILE_ROWS * cols * x_rows.clamp(1, item_rows);
    let tiles = (share * planes / ITEMS_PER_THREAD).max(MIN_WORK).div_ceil(tile_work);
    let tiles = if x_rows <= ROWS { tiles } else { tiles.next_multiple_of(TILES) };
    Cut { rows: tiles * TILE_ROWS, tokens: item_rows / planes }
}

/// Computes one item.
pub(super) fn run(
    kernels: &dyn PackedKernels,
    weights: &PackedMatrix<'_>,
    input: Input<'_>,
    rows: Range<usize>,
    tokens: Range<usize>,
    output: &Output<'_>,
) {
    let kind = weights.layout().kind();
    let planes = input.planes();
    let x_rows = tokens.len() * planes;
    // In what follows tokens count twice where they have two rows of activations.
    let mut x: [&[QuantizedBlock]; MAX_ROWS] = [&[]; MAX_ROWS];
    let x = &mut x[..x_rows];
    for (i, x) in x.iter_mut().enumerate() {
        *x = input.quantized_row(tokens.start + i / planes, i % planes);
    }
    let blocks = weights.layout().blocks();
    let few = x_rows <= ROWS;
    let step = if few { rows.len().next_multiple_of(TILE_ROWS) } else { TILES * TILE_ROWS };
    with_scratch([step * x_rows], |[sums]| {
        let sums = sums.as_chunks_mut::<TILE_ROWS>().0;
        for first in rows.clone().step_by(step) {
            let last = (first + step).min(rows.end);
            let at = first / TILE_ROWS..last.div_ceil(TILE_ROWS);
            let tiles = Tiles::new(kind, blocks, weights.tiles(at));
            let stretch = if few { blocks } else { STRETCH_BYTES / tiles.block_bytes() };
            let sums = &mut sums[..tiles.len() * x_rows];
            add_up(kernels, &tiles, x, stretch, sums);
            let batches =
                sums.chunks_mut(tiles.len() * ROWS).zip(tokens.clone().step_by(ROWS / planes));
            for (sums, token) in batches {
                write(sums, tiles.len(), planes, token, first..last, output);
            }
        }
    });
}

/// Adds up the dot products of some tiles and tokens, a stretch of columns at a time: `sums` are
/// `[batch of ROWS tokens][tile][token]`.
fn add_up(
    kernels: &dyn PackedKernels,
    tiles: &Tiles<'_>,
    x: &[&[QuantizedBlock]],
    stretch: usize,
    sums: &mut [TileSums],
) {
    sums.fill([0.0; TILE_ROWS]);
    for start in (0..tiles.blocks()).step_by(stretch) {
        let part = start..(start + stretch).min(tiles.blocks());
        let tiles = tiles.part(part.clone());
        for (x, sums) in x.chunks(ROWS).zip(sums.chunks_mut(tiles.len() * ROWS)) {
            let mut parts: [&[QuantizedBlock]; ROWS] = [&[]; ROWS];
            for (stretch, x) in parts.iter_mut().zip(x) {
                *stretch = &x[part.clone()];
            }
            kernels.dots(&tiles, &parts[..x.len()], sums);
        }
    }
}

/// Writes the sums of one batch, `[tile][token]`, the first token of which is `token`.
fn write(
    sums: &mut [TileSums],
    tiles: usize,
    planes: usize,
    token: usize,
    rows: Range<usize>,
    output: &Output<'_>,
) {
    let x_rows = sums.len() / tiles;
    let starts = rows.clone().step_by(TILE_ROWS);
    for (start, sums) in starts.zip(sums.chunks_exact_mut(x_rows)) {
        let count = (rows.end - start).min(TILE_ROWS);
        for (token, sums) in (token..).zip(sums.chunks_exact_mut(planes)) {
            if let [sums, rest] = sums {
                super::super::add(sums, rest);
            }
            output.write(token, start, &sums[0][..count]);
        }
    }
}
