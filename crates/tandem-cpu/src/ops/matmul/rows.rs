//! Products with weights as they are in files, in f32: the exact path.
//!
//! With more than one token a tile of rows is decoded once into scratch that stays in the core's cache, and the
//! arithmetic then runs on plain f32.

use std::ops::Range;

use super::{Cut, Output};
use crate::isa::{Kernels, Rows};
use crate::ops::{Input, MatrixRef};
use crate::scratch::with_scratch;

/// Columns of a decoded tile. With [`TILE_ROWS`] rows of f32 this is 128 KiB: half of the smallest second-level
/// cache per core. A multiple of every encoding's block.
const TILE_COLS: usize = 512;
/// Rows of a decoded tile, at most.
const TILE_ROWS: usize = 64;
/// Tokens that a decoded tile is used for before it is decoded again, at most. Decoding costs a weight about as
/// much as ten tokens' arithmetic, so it fades here, while a block of tokens (192 KiB for a tile's columns) stays
/// in cache. A multiple of the 3 tokens that the inner loop takes at a time.
const TILE_TOKENS: usize = 96;
/// Work items a thread should find, so that threads of different speed end together.
const ITEMS_PER_THREAD: usize = 6;
/// Weights below which a piece of one token's work costs more to hand out than to do.
const MIN_WEIGHTS: usize = 1 << 13;

/// Cuts a product into tiles of a share's rows or a few more, where a tile may have as many.
pub(super) fn cut(tokens: usize, cols: usize, share: usize) -> Cut {
    let token_blocks = tokens.div_ceil(TILE_TOKENS).max(1);
    let tile_tokens = tokens.div_ceil(token_blocks).next_multiple_of(3).max(3);
    let smallest = if tokens == 1 { MIN_WEIGHTS.div_ceil(cols) } else { 8 };
    let share = share / ITEMS_PER_THREAD / (cols * tokens.clamp(1, TILE_TOKENS));
    let rows = share.next_multiple_of(4).clamp(smallest.min(TILE_ROWS), TILE_ROWS);
    Cut { rows, tokens: tile_tokens }
}

/// Computes one item.
pub(super) fn run(
    kernels: &dyn Kernels,
    weights: &MatrixRef<'_>,
    input: Input<'_>,
    rows: Range<usize>,
    tokens: Range<usize>,
    output: &Output<'_>,
) {
    // Not whether the item has one: a token's result must not depend on how a batch is cut.
    if input.tokens(weights.cols) == 1 {
        one_token(kernels, weights, input, rows, output);
    } else {
        tile(kernels, weights, input, rows, tokens, output);
    }
}

fn one_token(
    kernels: &dyn Kernels,
    weights: &MatrixRef<'_>,
    input: Input<'_>,
    rows: Range<usize>,
    output: &Output<'_>,
) {
    let x = input.row(0, weights.cols);
    with_scratch([rows.len()], |[sums]| {
        for (row, sum) in rows.clone().zip(sums.iter_mut()) {
            *sum = kernels.dot(weights.dtype, weights.row(row), x);
        }
        output.write(0, rows.start, sums);
    });
}

fn tile(
    kernels: &dyn Kernels,
    weights: &MatrixRef<'_>,
    input: Input<'_>,
    rows: Range<usize>,
    tokens: Range<usize>,
    output: &Output<'_>,
) {
    let cols = weights.cols;
    let tile_cols = TILE_COLS.min(cols);
    // Tokens that are selected from a batch lie anywhere: what a tile needs of them is gathered first.
    let gathered = if input.is_selection() { tokens.len() * tile_cols } else { 0 };
    let lengths = [rows.len() * tile_cols, rows.len() * tokens.len(), gathered];
    with_scratch(lengths, |[decoded, sums, gathered]| {
        sums.fill(0.0);
        for start in (0..cols).step_by(TILE_COLS) {
            let part = start..(start + TILE_COLS).min(cols);
            let decoded = &mut decoded[..rows.len() * part.len()];
            for (row, out) in rows.clone().zip(decoded.chunks_exact_mut(part.len())) {
                kernels.decode(weights.dtype, weights.row_part(row, part.clone()), out);
            }
            let x = if input.is_selection() {
                for (token, out) in tokens.clone().zip(gathered.chunks_exact_mut(part.len())) {
                    out.copy_from_slice(&input.row(token, cols)[part.clone()]);
                }
                Rows::new(gathered, tokens.len(), part.len(), part.len())
            } else {
                let x = &input.rows()[tokens.start * cols + start..];
                Rows::new(x, tokens.len(), part.len(), cols)
            };
            kernels.dots(Rows::packed(decoded, rows.len()), x, sums);
        }
        for (token, sums) in tokens.zip(sums.chunks_exact(rows.len())) {
            output.write(token, rows.start, sums);
        }
    });
}
