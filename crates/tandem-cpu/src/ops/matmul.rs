//! Products of weights and activations.
//!
//! With one token every weight is used once: rows are decoded in registers as they stream in from memory, and
//! that is bound by the memory. With more tokens the same row serves all of them: a tile of rows is decoded once
//! into scratch that stays in the core's cache, and the arithmetic then runs on plain f32.
//!
//! Several products can be computed in one go ([`matmul_all`]). The threads then wait for each other once, not
//! once for each matrix, which matters where matrices are small: a router's experts have 448 rows.

use std::ops::Range;

use super::MatrixRef;
use crate::cpu::Cpu;
use crate::disjoint::Disjoint;
use crate::isa::{Kernels, Rows};
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

/// One product: `out = weights * x + bias` for every token.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[rows][cols]`.
    pub weights: MatrixRef<'a>,
    /// `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// `[token][cols]`.
    pub x: &'a [f32],
    /// `[token][rows]`; overwritten.
    pub out: &'a mut [f32],
}

/// `out = weights * x + bias` for every token: `x` is `[token][cols]`, `out` `[token][rows]`.
///
/// # Panics
/// When the slices do not fit the matrix and each other.
pub fn matmul(cpu: &Cpu, weights: MatrixRef<'_>, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    matmul_all(cpu, &mut [Product { weights, bias, x, out }]);
}

/// Several products in one go. They may differ in everything, the number of tokens included.
///
/// # Panics
/// When the slices of a product do not fit together.
pub fn matmul_all(cpu: &Cpu, products: &mut [Product<'_>]) {
    let threads = cpu.team().threads();
    let work: usize = products.iter().map(|p| p.weights.rows * blocks_of_tokens(p)).sum();
    let mut end = 0;
    let tasks: Vec<Task<'_>> = products
        .iter_mut()
        .map(|product| {
            let task = Task::new(product, end, work / (threads * ITEMS_PER_THREAD));
            end = task.items.end;
            task
        })
        .collect();
    cpu.team().for_each_chunk(end, 1, &|items| {
        for item in items {
            let task = &tasks[tasks.partition_point(|task| task.items.end <= item)];
            task.run(cpu.kernels(), item - task.items.start);
        }
    });
}

fn tokens_of(product: &Product<'_>) -> usize {
    super::tokens("matmul input", product.x.len(), product.weights.cols)
}

fn blocks_of_tokens(product: &Product<'_>) -> usize {
    tokens_of(product).div_ceil(TILE_TOKENS)
}

/// A product, cut into items: blocks of tokens, and within each of them tiles of rows.
struct Task<'a> {
    weights: MatrixRef<'a>,
    bias: Option<&'a [f32]>,
    x: &'a [f32],
    out: Disjoint<'a>,
    tokens: usize,
    tile_rows: usize,
    tile_tokens: usize,
    /// This product's numbers among the items of all products.
    items: Range<usize>,
}

impl<'a> Task<'a> {
    /// Cuts a product into tiles of `share` rows or a little more, where a tile may have as many.
    fn new(product: &'a mut Product<'_>, first_item: usize, share: usize) -> Self {
        let tokens = tokens_of(product);
        let (rows, cols) = (product.weights.rows, product.weights.cols);
        assert_eq!(product.out.len(), tokens * rows, "matmul output of {tokens} tokens x {rows}");
        if let Some(bias) = product.bias {
            assert_eq!(bias.len(), rows, "matmul bias");
        }
        let token_blocks = blocks_of_tokens(product);
        let tile_tokens = tokens.div_ceil(token_blocks.max(1)).next_multiple_of(3);
        let smallest = if tokens == 1 { MIN_WEIGHTS.div_ceil(cols) } else { 8 };
        let tile_rows = share.next_multiple_of(4).clamp(smallest.min(TILE_ROWS), TILE_ROWS);
        let items = first_item..first_item + rows.div_ceil(tile_rows) * token_blocks;
        Self {
            weights: product.weights,
            bias: product.bias,
            x: product.x,
            out: Disjoint::new(product.out),
            tokens,
            tile_rows,
            tile_tokens,
            items,
        }
    }

    /// Computes one item. Neighbouring items share their block of tokens, which then is in a shared cache.
    fn run(&self, kernels: &dyn Kernels, item: usize) {
        let tiles = self.weights.rows.div_ceil(self.tile_rows);
        let part =
            |index: usize, size: usize, end: usize| index * size..((index + 1) * size).min(end);
        let rows = part(item % tiles, self.tile_rows, self.weights.rows);
        if self.tokens == 1 {
            self.one_token(kernels, rows);
        } else {
            self.tile(kernels, rows, part(item / tiles, self.tile_tokens, self.tokens));
        }
    }

    fn one_token(&self, kernels: &dyn Kernels, rows: Range<usize>) {
        let out = self.output(0, rows.clone());
        for (row, out) in rows.clone().zip(out.iter_mut()) {
            *out = kernels.dot(self.weights.dtype, self.weights.row(row), self.x);
        }
        self.add_bias(rows, out);
    }

    fn tile(&self, kernels: &dyn Kernels, rows: Range<usize>, tokens: Range<usize>) {
        let cols = self.weights.cols;
        let tile_cols = TILE_COLS.min(cols);
        with_scratch([rows.len() * tile_cols, rows.len() * tokens.len()], |[decoded, sums]| {
            sums.fill(0.0);
            for start in (0..cols).step_by(TILE_COLS) {
                let part = start..(start + TILE_COLS).min(cols);
                let decoded = &mut decoded[..rows.len() * part.len()];
                for (row, out) in rows.clone().zip(decoded.chunks_exact_mut(part.len())) {
                    let bytes = self.weights.row_part(row, part.clone());
                    kernels.decode(self.weights.dtype, bytes, out);
                }
                let x = &self.x[tokens.start * cols + start..];
                let x = Rows::new(x, tokens.len(), part.len(), cols);
                kernels.dots(Rows::packed(decoded, rows.len()), x, sums);
            }
            for (token, sums) in tokens.zip(sums.chunks_exact(rows.len())) {
                let out = self.output(token, rows.clone());
                out.copy_from_slice(sums);
                self.add_bias(rows.clone(), out);
            }
        });
    }

    fn add_bias(&self, rows: Range<usize>, out: &mut [f32]) {
        if let Some(bias) = self.bias {
            super::add(out, &bias[rows]);
        }
    }

    /// Where the result of some rows goes for one token.
    #[allow(unsafe_code)]
    #[expect(clippy::mut_from_ref, reason = "items do not overlap")]
    fn output(&self, token: usize, rows: Range<usize>) -> &mut [f32] {
        // SAFETY: only `run` writes output, an item at a time; every item is run once, items differ in their
        // tokens or their rows, and `run` uses one of these parts after the other.
        unsafe { self.out.part(token * self.weights.rows + rows.start, rows.len()) }
    }
}
