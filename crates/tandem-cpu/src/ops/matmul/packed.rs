//! Products with packed weights: activations in 8 bits, sums in whole numbers block by block.
//!
//! With many tokens, a few tiles of 16 rows are multiplied with as many tokens at a time as there are registers for: the
//! tokens lie in the first-level cache for all of the tiles, and the tiles in the second-level one for all tokens of an
//! item; where there are tokens enough, quants of 4 bits are given a byte each before. With few tokens, tiles are taken from
//! one end to the other, as they come from memory.

use std::ops::{Range, RangeInclusive};

use tandem_memory::packed::TILE_ROWS;
use tandem_memory::{PackedMatrix, PackedType, QuantizedBlock};

use super::{Cut, Output};
use crate::isa::{PackedKernels, TileSums, Tiles, WIDE_BYTES};
use crate::ops::Input;
use crate::scratch::with_scratch;

/// Rows of activations that an item has, at most. With 4096 columns they are 1.3 MB, which come by for every few tiles of
/// weights, slowly enough for any cache; with half as many the weights come by twice, most of them from memory, and are
/// widened twice: prompts of 512 tokens take 2 % longer.
const MAX_ROWS: usize = 256;
/// Rows of activations that count as few.
const FEW: usize = 8;
/// Columns of the tiles that are taken at a time where there are many tokens, all tiles together: of q4_0 147 KB.
const TILE_COLS: usize = 4 * 4096;
/// How many tiles that may be. Each is a cache line of every token's results.
const TILES: RangeInclusive<usize> = 4..=16;
/// Batches of tokens that it takes to give 4-bit quants a byte each: that costs as much as it saves two of them.
const WIDE_BATCHES: usize = 4;
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
    let item_rows = x_rows.div_ceil(parts).next_multiple_of(planes).max(planes);
    let tile_work = TILE_ROWS * cols * x_rows.clamp(1, item_rows);
    let tiles = (share * planes / ITEMS_PER_THREAD).max(MIN_WORK).div_ceil(tile_work);
    let tiles = if x_rows <= FEW { tiles } else { tiles.next_multiple_of(tiles_at_a_time(cols)) };
    Cut { rows: tiles * TILE_ROWS, tokens: item_rows / planes }
}

/// Tiles that are taken at a time where there are many tokens.
fn tiles_at_a_time(cols: usize) -> usize {
    // Some kernels take two at once.
    (TILE_COLS / cols).clamp(*TILES.start(), *TILES.end()).next_multiple_of(2)
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
    let few = x_rows <= FEW;
    let (step, most) = if few {
        (rows.len().next_multiple_of(TILE_ROWS), FEW)
    } else {
        (tiles_at_a_time(weights.cols()) * TILE_ROWS, kernels.batch())
    };
    // A batch has one token at least, whatever its rows.
    let room = step * x_rows.min(most.max(planes));
    let widened = kind == PackedType::Q4_0 && x_rows >= WIDE_BATCHES * most;
    let wide = if widened { step / TILE_ROWS * blocks * WIDE_BYTES } else { 0 };
    with_scratch([room, step, wide / size_of::<f32>()], |[sums, row, wide]| {
        let sums = sums.as_chunks_mut::<TILE_ROWS>().0;
        for first in rows.clone().step_by(step) {
            let rows = first..(first + step).min(rows.end);
            let at = first / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
            let (quants, scales) = weights.tiles(at);
            let tiles = if widened {
                let wide = &mut bytemuck::cast_slice_mut(wide)[..2 * quants.len()];
                kernels.widen(quants, wide);
                Tiles::wide(blocks, wide, scales)
            } else {
                Tiles::new(kind, blocks, (quants, scales))
            };
            for batch in batches(tokens.len(), most / planes) {
                let x = &x[batch.start * planes..batch.end * planes];
                let batch = tokens.start + batch.start..tokens.start + batch.end;
                output.expect(batch.clone(), rows.clone());
                let sums = &mut sums[..tiles.len() * x.len()];
                kernels.dots(&tiles, few, x, sums);
                for (n, token) in batch.enumerate() {
                    let row = &mut row[..tiles.len() * TILE_ROWS];
                    collect(sums, x.len(), n * planes..(n + 1) * planes, row);
                    output.write(token, first, &row[..rows.len()]);
                }
            }
        }
    });
}

/// Tokens in batches of at most so many, as equal in size as they can be: a small one at the end would take nearly the
/// time of a whole one.
fn batches(tokens: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = tokens.div_ceil(most.max(1));
    (0..count).map(move |n| n * tokens / count..(n + 1) * tokens / count)
}

/// Puts a token's sums into a row. They are `[tile][row of activations]`; those of the token's rows are added up.
fn collect(sums: &[TileSums], x_rows: usize, planes: Range<usize>, row: &mut [f32]) {
    let tiles = row.as_chunks_mut::<TILE_ROWS>().0;
    for (row, sums) in tiles.iter_mut().zip(sums.chunks_exact(x_rows)) {
        *row = sums[planes.start];
        for rest in &sums[planes.start + 1..planes.end] {
            super::super::add(row, rest);
        }
    }
}
