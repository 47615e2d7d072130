//! The input of products: activations in f32 and, for packed weights, in 8 bits.
//!
//! Packed weights are multiplied in whole numbers, so activations are quantized too: blocks of 32 along a token's
//! row, each with an f32 scale that makes its largest magnitude 127. That happens once for an input, however many
//! products it goes into.

use tandem_memory::packed::BLOCK_COLS;

use super::Weights;
use crate::cpu::Cpu;
use crate::disjoint::Disjoint;
use crate::isa::QuantizedBlock;

/// Blocks handed to a thread at a time: a few microseconds of work.
const CHUNK: usize = 256;

/// Activations of some tokens in 8 bits. Keeps its memory from one input to the next.
#[derive(Debug, Default)]
pub struct QuantizedActivations {
    /// Blocks of a token.
    row: usize,
    blocks: Vec<QuantizedBlock>,
}

impl QuantizedActivations {
    /// Quantizes `x`, `[token][cols]`, in place of what was there before.
    ///
    /// A block that holds a number that is not finite is NaN as a whole.
    ///
    /// # Panics
    /// When `cols` is no whole number of blocks of 32, or `x` no whole number of rows.
    #[allow(unsafe_code)]
    pub fn fill(&mut self, cpu: &Cpu, x: &[f32], cols: usize) {
        assert!(cols.is_multiple_of(BLOCK_COLS), "{cols} columns are no blocks of {BLOCK_COLS}");
        super::tokens("activations to quantize", x.len(), cols);
        self.row = cols / BLOCK_COLS;
        self.blocks.resize(x.len() / BLOCK_COLS, QuantizedBlock::default());
        let count = self.blocks.len();
        let out = Disjoint::new(&mut self.blocks);
        cpu.team().for_each_chunk(count, CHUNK, &|chunk| {
            // SAFETY: chunks do not overlap.
            let out = unsafe { out.part(chunk.start, chunk.len()) };
            cpu.packed().quantize(&x[chunk.start * BLOCK_COLS..chunk.end * BLOCK_COLS], out);
        });
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.blocks.len().checked_div(self.row).unwrap_or(0)
    }

    /// Activations of a token.
    pub fn cols(&self) -> usize {
        self.row * BLOCK_COLS
    }

    /// What the 8 bits stand for, `[token][cols]`.
    pub fn dequantize(&self) -> Vec<f32> {
        self.blocks.iter().flat_map(|b| b.values.map(|v| f32::from(v) * b.scale)).collect()
    }

    /// One token's blocks.
    pub(crate) fn row(&self, token: usize) -> &[QuantizedBlock] {
        &self.blocks[token * self.row..][..self.row]
    }
}

/// Activations that go into a product: all tokens of a batch, or some of them.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    x: &'a [f32],
    quantized: Option<&'a QuantizedActivations>,
    selected: Option<&'a [u32]>,
}

impl<'a> Input<'a> {
    /// Activations in f32, `[token][cols]`, for weights that are not packed.
    pub fn exact(x: &'a [f32]) -> Self {
        Self { x, quantized: None, selected: None }
    }

    /// Activations `[token][cols]` for the products with `weights`; quantizes them into `buffer` if one of those
    /// is packed.
    ///
    /// # Panics
    /// When the weights differ in columns, or `x` is no whole number of rows.
    pub fn new(
        cpu: &Cpu,
        x: &'a [f32],
        weights: &[Weights<'_>],
        buffer: &'a mut QuantizedActivations,
    ) -> Self {
        let Some(packed) = weights.iter().find(|weights| weights.is_packed()) else {
            return Self::exact(x);
        };
        buffer.fill(cpu, x, packed.cols());
        Self { x, quantized: Some(buffer), selected: None }
    }

    /// The tokens of these numbers, in this order, in place of all.
    #[must_use]
    pub fn select(self, tokens: &'a [u32]) -> Self {
        Self { selected: Some(tokens), ..self }
    }

    /// Tokens that go into the product, at `cols` activations a token.
    pub(super) fn tokens(&self, cols: usize) -> usize {
        let all = super::tokens("matmul input", self.x.len(), cols);
        if let Some(quantized) = self.quantized {
            assert_eq!((quantized.tokens(), quantized.cols()), (all, cols), "quantized input");
        }
        self.selected.map_or(all, <[u32]>::len)
    }

    /// Whether only some tokens of a batch go in.
    pub(super) fn is_selection(&self) -> bool {
        self.selected.is_some()
    }

    /// All tokens of the batch in f32.
    pub(super) fn rows(&self) -> &'a [f32] {
        self.x
    }

    /// A token in f32.
    pub(super) fn row(&self, token: usize, cols: usize) -> &'a [f32] {
        &self.x[self.place(token) * cols..][..cols]
    }

    /// A token in 8 bits.
    pub(super) fn quantized_row(&self, token: usize) -> &'a [QuantizedBlock] {
        let Some(quantized) = self.quantized else {
            panic!("packed weights take quantized activations");
        };
        quantized.row(self.place(token))
    }

    fn place(&self, token: usize) -> usize {
        self.selected.map_or(token, |selected| selected[token] as usize)
    }
}
