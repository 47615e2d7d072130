//! Products of weight matrices with activations.
//!
//! With one token every weight is used once: the rows are decoded in registers as they stream in from memory, and
//! that is bound by the memory. With more tokens the same row serves all of them, and the arithmetic is the limit.
//! How that is done differs with the form of the weights: [`rows`] for matrices as they are in files, in f32;
//! [`packed`] for packed ones, in whole numbers. Or oneDNN does it, where it is asked to: [`library`].
//!
//! Several products can be computed in one go ([`matmul_all`]). The threads then wait for each other once, not
//! once for each matrix, which matters where matrices are small: a router's experts have 448 rows.

mod largest;
mod library;
mod packed;
mod rows;
mod upcoming;

use std::ops::Range;

pub use largest::Largest;
pub use upcoming::announce;

use super::{Input, Weights};
use crate::cpu::Cpu;
use crate::disjoint::Disjoint;
use crate::onednn::OneDnn;

/// One product: `out = weights * x + bias` for every token of the input.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[rows][cols]`.
    pub weights: Weights<'a>,
    /// `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// Tokens of `[cols]`.
    pub input: Input<'a>,
    /// `[token][rows]`.
    pub out: &'a mut [f32],
    /// Whether results are added to what is in `out`, as a residual connection wants; else they replace it.
    pub accumulate: bool,
    /// Where to keep the largest results of each token; nowhere where this is empty.
    pub largest: &'a [Largest<'a>],
    /// The number that the first row has there: not 0 for the later rows of a matrix.
    pub first_row: usize,
}

impl<'a> Product<'a> {
    /// `out = weights * x + bias`.
    pub fn new(
        weights: impl Into<Weights<'a>>,
        bias: Option<&'a [f32]>,
        input: Input<'a>,
        out: &'a mut [f32],
    ) -> Self {
        Self {
            weights: weights.into(),
            bias,
            input,
            out,
            accumulate: false,
            largest: &[],
            first_row: 0,
        }
    }

    /// Tokens of the input.
    fn tokens(&self) -> usize {
        self.input.tokens(self.weights.cols())
    }

    /// Multiplications of a weight with an activation.
    pub fn multiplications(&self) -> usize {
        self.weights.rows() * self.weights.cols() * self.tokens()
    }
}

/// `out = weights * x + bias` for every token of the input: `out` is `[token][rows]`.
///
/// # Panics
/// When the slices do not fit the matrix and each other, or packed weights meet an input that is not quantized.
pub fn matmul<'a>(
    cpu: &Cpu,
    weights: impl Into<Weights<'a>>,
    bias: Option<&'a [f32]>,
    input: Input<'a>,
    out: &'a mut [f32],
) {
    matmul_all(cpu, &mut [Product::new(weights, bias, input, out)]);
}

/// Several products in one go. They may differ in everything, the number of tokens included.
///
/// # Panics
/// When what belongs to one product does not fit together.
pub fn matmul_all(cpu: &Cpu, products: &mut [Product<'_>]) {
    let work: usize = products.iter().map(Product::multiplications).sum();
    let share = work / cpu.team().threads();
    let mut end = 0;
    let tasks: Vec<Task<'_>> = products
        .iter_mut()
        .map(|product| {
            let task = Task::new(cpu, product, end, share);
            end = task.items.end;
            task
        })
        .collect();
    cpu.team().for_each_range(end, &|items| {
        let mut task = tasks.partition_point(|task| task.items.end <= items.start);
        let mut start = items.start;
        while start < items.end {
            let end = tasks[task].items.end.min(items.end);
            tasks[task].run(cpu, start..end);
            (task, start) = (task + 1, end);
        }
    });
}

/// A product, cut into items: blocks of tokens, and within each of them ranges of rows.
struct Task<'a> {
    weights: Weights<'a>,
    input: Input<'a>,
    output: Output<'a>,
    tokens: usize,
    cut: Cut,
    /// What computes it, if not these modules.
    onednn: Option<&'a OneDnn>,
    /// This product's numbers among the items of all products.
    items: Range<usize>,
}

/// Size of an item.
struct Cut {
    rows: usize,
    tokens: usize,
}

impl<'a> Task<'a> {
    /// Cuts a product; `share` is what a thread has to do in all, in weights times tokens.
    fn new(cpu: &'a Cpu, product: &'a mut Product<'_>, first_item: usize, share: usize) -> Self {
        let tokens = product.tokens();
        let (rows, cols) = (product.weights.rows(), product.weights.cols());
        assert_eq!(product.out.len(), tokens * rows, "matmul output of {tokens} tokens x {rows}");
        if let Some(bias) = product.bias {
            assert_eq!(bias.len(), rows, "matmul bias");
        }
        let onednn = library::takes(cpu, &product.weights, tokens);
        let cut = match product.weights {
            _ if onednn.is_some() => library::cut(tokens),
            Weights::Rows(_) => rows::cut(tokens, cols, share),
            Weights::Packed(_) => packed::cut(product.input, cols, share),
        };
        let items = first_item..first_item + rows.div_ceil(cut.rows) * tokens.div_ceil(cut.tokens);
        let output = Output {
            bias: product.bias,
            rows,
            out: Disjoint::new(product.out),
            accumulate: product.accumulate,
            largest: product.largest,
            first_row: product.first_row,
        };
        let (weights, input) = (product.weights, product.input);
        Self { weights, input, output, tokens, cut, onednn, items }
    }

    /// Computes some items of those of all products. Neighbouring items share their block of tokens, which then is in a
    /// shared cache.
    fn run(&self, cpu: &Cpu, items: Range<usize>) {
        let row_parts = self.output.rows.div_ceil(self.cut.rows);
        let mut item = items.start - self.items.start;
        let end = items.end - self.items.start;
        while item < end {
            let (block, part) = (item / row_parts, item % row_parts);
            let parts = (end - item).min(row_parts - part);
            let tokens = block * self.cut.tokens..((block + 1) * self.cut.tokens).min(self.tokens);
            let rows = part * self.cut.rows..((part + parts) * self.cut.rows).min(self.output.rows);
            self.run_rows(cpu, rows, tokens);
            item += parts;
        }
    }

    fn run_rows(&self, cpu: &Cpu, rows: Range<usize>, tokens: Range<usize>) {
        if let Some(onednn) = self.onednn {
            for start in rows.clone().step_by(self.cut.rows) {
                let rows = start..(start + self.cut.rows).min(rows.end);
                let (tokens, with) = (tokens.clone(), (cpu, onednn));
                library::run(with, &self.weights, self.input, rows, tokens, &self.output);
            }
            return;
        }
        match &self.weights {
            Weights::Rows(matrix) => {
                for start in rows.clone().step_by(self.cut.rows) {
                    let rows = start..(start + self.cut.rows).min(rows.end);
                    let tokens = tokens.clone();
                    rows::run(cpu.kernels(), matrix, self.input, rows, tokens, &self.output);
                }
            }
            Weights::Packed(matrix) => {
                packed::run(cpu.packed(), matrix, self.input, rows, tokens, &self.output);
            }
        }
    }
}

/// Where the results of a product go.
struct Output<'a> {
    bias: Option<&'a [f32]>,
    rows: usize,
    out: Disjoint<'a, f32>,
    accumulate: bool,
    largest: &'a [Largest<'a>],
    first_row: usize,
}

impl Output<'_> {
    /// Has the places of some results brought to the core's cache while they are being computed.
    fn expect(&self, tokens: Range<usize>, rows: Range<usize>) {
        for token in tokens {
            self.out.expect(token * self.rows + rows.start, rows.len());
        }
    }

    /// Writes the sums of one token, from row `first` on, with the bias added.
    #[allow(unsafe_code)]
    fn write(&self, token: usize, first: usize, sums: &[f32]) {
        // SAFETY: every item is run once, items differ in their tokens or their rows, and what is handed out ends
        // with this call.
        let out = unsafe { self.out.part(token * self.rows + first, sums.len()) };
        if self.accumulate {
            super::add(out, sums);
        } else {
            out.copy_from_slice(sums);
        }
        if let Some(bias) = self.bias {
            super::add(out, &bias[first..][..sums.len()]);
        }
        if let Some(largest) = self.largest.get(token) {
            largest.offer(self.first_row + first, out);
        }
    }
}
