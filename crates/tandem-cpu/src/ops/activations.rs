//! The input of products: activations in f32 and, for packed weights, in 8 bits.
//!
//! Packed weights are multiplied in whole numbers, so activations are quantized too: blocks of 32 along a token's
//! row, each with an f32 scale that makes its largest magnitude 127. That happens once for an input, however many
//! products it goes into.

use std::fmt;

use tandem_memory::packed::BLOCK_COLS;
use tandem_memory::{AlignedBuffer, QuantizedBlock};

use super::Weights;
use crate::cpu::Cpu;
use crate::disjoint::Disjoint;

/// Blocks handed to a thread at a time: a few microseconds of work.
const CHUNK: usize = 256;

/// Activations of some tokens in 8 bits, `[plane][token][block]`. Keeps its memory from one input to the next.
#[derive(Debug, Default)]
pub struct QuantizedActivations {
    /// Blocks of a token.
    row: usize,
    /// Blocks of a plane: all tokens.
    count: usize,
    /// The second plane is what the first leaves out, where that is wanted.
    planes: usize,
    room: Room,
}

/// Where blocks are.
enum Room {
    /// In memory of their own, which grows.
    Own(Vec<QuantizedBlock>),
    /// In memory that others use too.
    Supplied(AlignedBuffer),
}

impl Default for Room {
    fn default() -> Self {
        Self::Own(Vec::new())
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "room for {} blocks", self.blocks().len())
    }
}

impl Room {
    fn blocks(&self) -> &[QuantizedBlock] {
        match self {
            Self::Own(blocks) => blocks,
            Self::Supplied(memory) => memory.typed(),
        }
    }

    /// Room for so many, which may be anything.
    fn at_least(&mut self, count: usize) -> &mut [QuantizedBlock] {
        match self {
            Self::Supplied(memory) if memory.typed::<QuantizedBlock>().len() < count => {
                *self = Self::Own(Vec::new());
                self.at_least(count)
            }
            Self::Supplied(memory) => &mut memory.typed_mut()[..count],
            Self::Own(blocks) => {
                blocks.resize(blocks.len().max(count), QuantizedBlock::default());
                &mut blocks[..count]
            }
        }
    }
}

/// Writes a token's row of activations.
pub(super) type Prepare<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// How exactly activations are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// To 8 bits.
    Bits8,
    /// To 16 bits: 8 bits, and 8 more for what those leave out. Products take twice the arithmetic, and read the
    /// weights no more often.
    Bits16,
}

impl Precision {
    /// Rows of 8 bits that a token has.
    pub const fn planes(self) -> usize {
        match self {
            Self::Bits8 => 1,
            Self::Bits16 => 2,
        }
    }
}

impl QuantizedActivations {
    /// Quantizes `x`, `[token][cols]`, in place of what was there before.
    ///
    /// A block that holds a number that is not finite is NaN as a whole.
    ///
    /// # Panics
    /// When `cols` is no whole number of blocks of 32, or `x` no whole number of rows.
    pub fn fill(&mut self, cpu: &Cpu, x: &[f32], cols: usize, precision: Precision) {
        let places = self.places(x.len(), cols, precision);
        cpu.team().for_each_chunk(x.len() / BLOCK_COLS, CHUNK, &|chunk| {
            let x = &x[chunk.start * BLOCK_COLS..chunk.end * BLOCK_COLS];
            places.quantize(cpu, x, chunk.start);
        });
    }

    /// Has `prepare` write each token's row of `x`, and quantizes it while it is in the core's cache.
    ///
    /// # Panics
    /// As [`Self::fill`].
    fn fill_prepared(
        &mut self,
        cpu: &Cpu,
        x: &mut [f32],
        cols: usize,
        precision: Precision,
        prepare: Prepare<'_>,
    ) {
        let places = self.places(x.len(), cols, precision);
        prepare_rows(cpu, x, cols, &|token, x| {
            prepare(token, x);
            places.quantize(cpu, x, token * (cols / BLOCK_COLS));
        });
    }

    /// Makes room for `numbers` activations.
    fn places(&mut self, numbers: usize, cols: usize, precision: Precision) -> Places<'_> {
        self.shape(numbers, cols, precision);
        let (count, planes) = (self.count, self.planes);
        let blocks = self.room.at_least(count * planes);
        let (blocks, residuals) = blocks.split_at_mut(count);
        Places { blocks: Disjoint::new(blocks), residuals: Disjoint::new(residuals), precision }
    }

    /// What the room holds from now on: someone else has quantized `numbers` activations there.
    ///
    /// # Panics
    /// When `cols` is no whole number of blocks of 32, or `numbers` no whole number of rows.
    pub fn shape(&mut self, numbers: usize, cols: usize, precision: Precision) {
        assert!(cols.is_multiple_of(BLOCK_COLS), "{cols} columns are no blocks of {BLOCK_COLS}");
        super::tokens("activations to quantize", numbers, cols);
        self.row = cols / BLOCK_COLS;
        self.count = numbers / BLOCK_COLS;
        self.planes = precision.planes();
    }

    /// Uses this memory from now on, as long as it suffices.
    pub fn use_memory(&mut self, memory: AlignedBuffer) {
        *self = Self { room: Room::Supplied(memory), ..Self::default() };
    }

    /// All the room there is, for a device that shares it: the first blocks are those of the activations.
    pub fn room(&self) -> &[QuantizedBlock] {
        self.room.blocks()
    }

    /// As [`Self::room`], to be written to.
    pub fn room_mut(&mut self) -> &mut [QuantizedBlock] {
        let all = self.room.blocks().len();
        self.room.at_least(all)
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.count.checked_div(self.row).unwrap_or(0)
    }

    /// Activations of a token.
    pub fn cols(&self) -> usize {
        self.row * BLOCK_COLS
    }

    /// How exact they are.
    pub fn precision(&self) -> Precision {
        if self.planes > 1 { Precision::Bits16 } else { Precision::Bits8 }
    }

    /// What the 8 or 16 bits stand for, `[token][cols]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let plane = |plane| self.plane(plane).iter().flat_map(QuantizedBlock::dequantize);
        let mut x: Vec<f32> = plane(0).collect();
        if self.planes > 1 {
            x.iter_mut().zip(plane(1)).for_each(|(x, rest)| *x += rest);
        }
        x
    }

    fn plane(&self, plane: usize) -> &[QuantizedBlock] {
        &self.room.blocks()[plane * self.count..][..self.count]
    }

    /// One token's blocks, or those of what they leave out.
    fn row(&self, token: usize, plane: usize) -> &[QuantizedBlock] {
        &self.plane(plane)[token * self.row..][..self.row]
    }
}

/// Where quantized activations go.
struct Places<'a> {
    blocks: Disjoint<'a, QuantizedBlock>,
    residuals: Disjoint<'a, QuantizedBlock>,
    precision: Precision,
}

impl Places<'_> {
    /// Quantizes whole blocks, the first of which is number `first`. No two calls may have a block in common.
    #[allow(unsafe_code)]
    fn quantize(&self, cpu: &Cpu, x: &[f32], first: usize) {
        let count = x.len() / BLOCK_COLS;
        // SAFETY: `fill` and `fill_prepared`, which alone have places, call this once for each block.
        let out = unsafe { self.blocks.part(first, count) };
        cpu.packed().quantize(x, out);
        if self.precision == Precision::Bits16 {
            // SAFETY: as above.
            let residuals = unsafe { self.residuals.part(first, count) };
            quantize_rest(cpu, x, out, residuals);
        }
    }
}

/// Calls `prepare` with each token's number and row of `x`, `[token][cols]`, once; tokens are shared out to the team.
#[allow(unsafe_code)]
pub(super) fn prepare_rows(cpu: &Cpu, x: &mut [f32], cols: usize, prepare: Prepare<'_>) {
    let tokens = super::tokens("activations to prepare", x.len(), cols);
    let x = Disjoint::new(x);
    cpu.team().for_each_chunk(tokens, (CHUNK * BLOCK_COLS).div_ceil(cols), &|chunk| {
        for token in chunk {
            // SAFETY: every token is in one chunk, so its row is handed out once.
            prepare(token, unsafe { x.part(token * cols, cols) });
        }
    });
}

/// Quantizes what `blocks` leave out of `x`.
fn quantize_rest(cpu: &Cpu, x: &[f32], blocks: &[QuantizedBlock], out: &mut [QuantizedBlock]) {
    let x = x.as_chunks::<BLOCK_COLS>().0;
    for ((x, block), out) in x.iter().zip(blocks).zip(out.chunks_exact_mut(1)) {
        let mut rest = block.dequantize();
        rest.iter_mut().zip(x).for_each(|(rest, x)| *rest = x - *rest);
        cpu.packed().quantize(&rest, out);
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

    /// Activations `[token][cols]` for the products with `weights`; quantizes them into `buffer`, to `precision`,
    /// if one of those is packed.
    ///
    /// # Panics
    /// When the weights differ in columns, or `x` is no whole number of rows.
    pub fn new(
        cpu: &Cpu,
        x: &'a [f32],
        weights: &[Weights<'_>],
        precision: Precision,
        buffer: &'a mut QuantizedActivations,
    ) -> Self {
        let Some(packed) = weights.iter().find(|weights| weights.is_packed()) else {
            return Self::exact(x);
        };
        buffer.fill(cpu, x, packed.cols(), precision);
        Self { x, quantized: Some(buffer), selected: None }
    }

    /// As [`Self::new`], of activations that `quantized` holds already if one of the weights is packed.
    pub fn prepared_before(
        x: &'a [f32],
        weights: &[Weights<'_>],
        quantized: &'a QuantizedActivations,
    ) -> Self {
        let packed = weights.iter().any(Weights::is_packed);
        Self { x, quantized: packed.then_some(quantized), selected: None }
    }

    /// As [`Self::new`], of activations that `prepare` writes, a token's row of `cols` at a time: what it has written
    /// is quantized before it leaves the core's cache, and the threads wait for each other once, not twice.
    pub(super) fn prepared(
        cpu: &Cpu,
        x: &'a mut [f32],
        cols: usize,
        (weights, precision): (&[Weights<'_>], Precision),
        buffer: &'a mut QuantizedActivations,
        prepare: Prepare<'_>,
    ) -> Self {
        if weights.iter().any(Weights::is_packed) {
            buffer.fill_prepared(cpu, x, cols, precision, prepare);
            Self { x, quantized: Some(buffer), selected: None }
        } else {
            prepare_rows(cpu, x, cols, prepare);
            Self::exact(x)
        }
    }

    /// The same activations for weights that are not packed.
    #[must_use]
    pub fn in_f32(self) -> Self {
        Self { quantized: None, ..self }
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

    /// Rows of 8 bits that a token has: 2 where the second is what the first leaves out.
    pub(super) fn planes(&self) -> usize {
        match self.quantized {
            Some(quantized) => quantized.planes,
            None => 1,
        }
    }

    /// One of a token's rows of 8 bits.
    pub(super) fn quantized_row(&self, token: usize, plane: usize) -> &'a [QuantizedBlock] {
        let Some(quantized) = self.quantized else {
            panic!("packed weights take quantized activations");
        };
        quantized.row(self.place(token), plane)
    }

    fn place(&self, token: usize) -> usize {
        self.selected.map_or(token, |selected| selected[token] as usize)
    }
}
