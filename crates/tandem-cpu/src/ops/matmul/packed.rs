//! Products with packed weights: activations in 8 bits, sums in whole numbers block by block.
//!
//! A tile of 16 rows is multiplied with all tokens of an item while it lies in the first-level cache, a stretch of
//! columns at a time. Sums continue from stretch to stretch in the same order, so where a product is cut makes no
//! difference to the result.

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
/// An item has a multiple of as many, which every instruction set takes at a time.
const ROWS: usize = 8;
/// Blocks of a stretch of columns: of a tile that is 9 KB or 17 KB, so it stays in the first-level cache for all
/// tokens of an item.
const STRETCH: usize = 32;
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
    // A few tokens take all tiles from one end to the other; of many, each stretch of a tile serves all.
    let (step, few) = if x_rows <= ROWS { (rows.len(), true) } else { (TILE_ROWS, false) };
    with_scratch([step.div_ceil(TILE_ROWS) * x_rows * TILE_ROWS], |[sums]| {
        let sums = sums.as_chunks_mut::<TILE_ROWS>().0;
        for first in rows.clone().step_by(step) {
            let at = first / TILE_ROWS..(first + step).div_ceil(TILE_ROWS);
            let tiles = Tiles::new(kind, weights.layout().blocks(), weights.tiles(at));
            sums.fill([0.0; TILE_ROWS]);
            if few {
                kernels.dots(tiles, x, sums);
            } else {
                stretch_by_stretch(kernels, tiles, x, sums);
            }
            let last = (first + step).min(rows.end);
            let starts = (first..last).step_by(TILE_ROWS);
            for (start, sums) in starts.zip(sums.chunks_exact_mut(x_rows)) {
                let count = (last - start).min(TILE_ROWS);
                for (token, sums) in tokens.clone().zip(sums.chunks_exact_mut(planes)) {
                    if let [sums, rest] = sums {
                        super::super::add(sums, rest);
                    }
                    output.write(token, start, &sums[0][..count]);
                }
            }
        }
    });
}

/// Adds up the dot products of a tile with many tokens, a stretch of columns at a time.
fn stretch_by_stretch(
    kernels: &dyn PackedKernels,
    tile: Tiles<'_>,
    x: &[&[QuantizedBlock]],
    sums: &mut [TileSums],
) {
    let mut stretch: [&[QuantizedBlock]; MAX_ROWS] = [&[]; MAX_ROWS];
    for start in (0..tile.blocks()).step_by(STRETCH) {
        let part = start..(start + STRETCH).min(tile.blocks());
        for (stretch, x) in stretch.iter_mut().zip(x) {
            *stretch = &x[part.clone()];
        }
        kernels.dots(tile.part(part), &stretch[..x.len()], sums);
    }
}
