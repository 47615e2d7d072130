//! Products with packed weights: activations in 8 bits, sums in whole numbers block by block.
//!
//! A tile of 16 rows is multiplied with all tokens of an item while it lies in the first-level cache, a stretch of
//! columns at a time. Sums continue from stretch to stretch in the same order, so where a product is cut makes no
//! difference to the result.

use std::ops::Range;

use tandem_memory::PackedMatrix;
use tandem_memory::packed::TILE_ROWS;

use super::{Cut, Output};
use crate::isa::{PackedKernels, QuantizedBlock, Tile};
use crate::ops::Input;
use crate::scratch::with_scratch;

/// Tokens of an item, at most. With 4096 columns they are 330 KB: a fraction of a second-level cache, where they
/// stay while tile after tile of rows comes by.
const MAX_TOKENS: usize = 64;
/// An item has a multiple of as many tokens, which every instruction set takes at a time.
const TOKENS: usize = 8;
/// Blocks of a stretch of columns: of a tile that is 9 KB or 17 KB, so it stays in the first-level cache for all
/// tokens of an item.
const STRETCH: usize = 32;
/// Work items a thread should find, so that threads of different speed end together.
const ITEMS_PER_THREAD: usize = 16;
/// Weights times tokens below which an item costs more to hand out than to do: half a microsecond of memory.
const MIN_WORK: usize = 1 << 14;

/// Cuts a product into ranges of tiles.
pub(super) fn cut(tokens: usize, cols: usize, share: usize) -> Cut {
    let token_blocks = tokens.div_ceil(MAX_TOKENS).max(1);
    let item_tokens = tokens.div_ceil(token_blocks).next_multiple_of(TOKENS).max(TOKENS);
    let tile_work = TILE_ROWS * cols * tokens.clamp(1, item_tokens);
    let tiles = (share / ITEMS_PER_THREAD).max(MIN_WORK).div_ceil(tile_work);
    Cut { rows: tiles * TILE_ROWS, tokens: item_tokens }
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
    let blocks = weights.layout().blocks();
    // A few tokens take the tile once, from one end to the other.
    let stretch = if tokens.len() <= TOKENS { blocks } else { STRETCH };
    with_scratch([tokens.len() * TILE_ROWS], |[sums]| {
        let sums = sums.as_chunks_mut::<TILE_ROWS>().0;
        for first in rows.clone().step_by(TILE_ROWS) {
            let tile = Tile::new(kind, weights.tile(first / TILE_ROWS));
            sums.fill([0.0; TILE_ROWS]);
            for start in (0..blocks).step_by(stretch) {
                let part = start..(start + stretch).min(blocks);
                let mut x: [&[QuantizedBlock]; MAX_TOKENS] = [&[]; MAX_TOKENS];
                for (x, token) in x.iter_mut().zip(tokens.clone()) {
                    *x = &input.quantized_row(token)[part.clone()];
                }
                kernels.dots(tile.part(part), &x[..tokens.len()], sums);
            }
            let count = (rows.end - first).min(TILE_ROWS);
            for (token, sums) in tokens.clone().zip(&*sums) {
                output.write(token, first, &sums[..count]);
            }
        }
    });
}
