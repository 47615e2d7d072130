//! Products: with packed weights, with those of experts, and with weights in rows.

use tandem_formats::DType;
use tandem_gpu::ops::{
    self, Dense, ExpertInput, ExpertStarts, ExpertWeights, FloatWeights, Output, PackedWeights,
    Precision, QuantizedVec, UsesVec,
};
use tandem_gpu::{GpuVec, Result};
use tandem_memory::{PackedLayout, PackedType};
use tandem_testkit::Rng;

use crate::Bench;
use crate::timing::{Times, time};

/// Rows and columns of Phi-tiny-MoE's matrices.
pub(crate) const SHAPES: [(&str, usize, usize); 4] =
    [("q", 2048, 4096), ("k, v", 512, 4096), ("o", 4096, 2048), ("lm_head", 32064, 4096)];
pub(crate) const EXPERT_SHAPES: [(&str, usize, usize); 2] =
    [("gate, up", 448, 4096), ("down", 4096, 448)];
const N_EXPERTS: usize = 16;
/// Bytes of the largest of all matrices: lm_head in bf16.
pub(crate) const LARGEST: usize = 32064 * 4096 * 2;
/// Arithmetic of a round, at most: more launches say nothing more.
const OPERATIONS: f64 = 2e11;

/// Random weights whose scales are small positive numbers, whatever the bytes are taken for.
pub(crate) fn weights(bytes: usize) -> Vec<u8> {
    let mut weights = vec![0; bytes];
    Rng::new(1).fill(&mut weights);
    weights.iter_mut().for_each(|byte| *byte &= 0x3b);
    weights
}

pub(crate) fn header() {
    println!(
        "| matrix | tokens | us, kernel | us, in a row | GB/s | of copying | GB/s, in a row | Gop/s |"
    );
    println!("|---|---|---|---|---|---|---|---|");
}

/// A product that is measured.
struct Product<'a> {
    name: &'a str,
    encoding: String,
    rows: usize,
    cols: usize,
    tokens: usize,
    /// Bytes of weights that one launch reads.
    bytes: usize,
    /// Multiplications of a matrix and a vector.
    vectors: usize,
}

impl Product<'_> {
    fn operations(&self) -> f64 {
        2.0 * (self.rows * self.cols * self.vectors) as f64
    }

    /// Where the weights of each launch begin, among so many bytes.
    fn places(&self, each: usize, stream: usize) -> Vec<usize> {
        let enough = (OPERATIONS / self.operations()).max(4.0) as usize;
        (0..(stream / each).clamp(1, enough)).map(|copy| copy * each).collect()
    }

    fn print(&self, bench: &Bench, times: Times) {
        let rate = |amount: f64, seconds: f64| amount / seconds / 1e9;
        let bytes = self.bytes as f64;
        println!(
            "| {} {} x {} {} | {} | {:.1} | {:.1} | {:.1} | {:.0} % | {:.1} | {:.0} |",
            self.name,
            self.rows,
            self.cols,
            self.encoding,
            self.tokens,
            times.kernel * 1e6,
            times.in_a_row * 1e6,
            rate(bytes, times.kernel),
            100.0 * bytes / times.kernel / bench.copy,
            rate(bytes, times.in_a_row),
            rate(self.operations(), times.kernel),
        );
    }
}

/// Activations, quantized, and where their products go.
struct Room {
    x: GpuVec<f32>,
    quantized: QuantizedVec,
    out: GpuVec<f32>,
}

impl Room {
    fn new(bench: &Bench, tokens: usize, cols: usize, outputs: usize) -> Result<Self> {
        let mut rng = Rng::new(2);
        let x: Vec<f32> = (0..tokens * cols).map(|_| rng.normal()).collect();
        Ok(Self {
            x: bench.gpu.upload(&x)?,
            quantized: QuantizedVec::new(&bench.gpu, x.len(), Precision::Bits8)?,
            out: bench.gpu.zeros(outputs)?,
        })
    }
}

/// The product of one packed matrix.
pub(crate) fn packed(
    bench: &Bench,
    name: &str,
    kind: PackedType,
    rows: usize,
    cols: usize,
    tokens: usize,
) -> anyhow::Result<()> {
    let layout = PackedLayout::new(kind, rows, cols).expect("whole blocks");
    let bytes = layout.n_bytes();
    let encoding = kind.dtype().to_string();
    let product = Product { name, encoding, rows, cols, tokens, bytes, vectors: tokens };
    let places = product.places(bytes, bench.weights.len());
    let Room { x, mut quantized, mut out } = Room::new(bench, tokens, cols, tokens * rows)?;
    let kernels = ["matvec", "matmul"];
    let times = time(&bench.gpu, bench.rounds, &kernels, || {
        bench.gpu.scope(|scope| {
            let x = quantized.fill(scope, &scope.vec(&x)?, cols, Precision::Bits8)?;
            let (all, out) = (scope.vec(&bench.weights)?, scope.vec_mut(&mut out)?);
            places.iter().try_for_each(|&at| {
                let weights = PackedWeights::new(layout, all.slice(at..at + bytes));
                ops::matmul(scope, &weights, None, &x, Output::Replace, &out)
            })
        })
    })?;
    product.print(bench, times);
    Ok(())
}

/// q, k and v in one launch.
pub(crate) fn attention(bench: &Bench, kind: PackedType, tokens: usize) -> anyhow::Result<()> {
    let cols = 4096;
    let layouts =
        [2048, 512, 512].map(|rows| PackedLayout::new(kind, rows, cols).expect("whole blocks"));
    let bytes = layouts.iter().map(PackedLayout::n_bytes).sum();
    let rows = layouts.iter().map(PackedLayout::rows).sum();
    let (name, encoding) = ("q, k and v", kind.dtype().to_string());
    let product = Product { name, encoding, rows, cols, tokens, bytes, vectors: tokens };
    let places = product.places(bytes, bench.weights.len());
    let Room { x, mut quantized, mut out } = Room::new(bench, tokens, cols, tokens * rows)?;
    let times = time(&bench.gpu, bench.rounds, &["matvec", "matmul"], || {
        bench.gpu.scope(|scope| {
            let x = quantized.fill(scope, &scope.vec(&x)?, cols, Precision::Bits8)?;
            let (all, out) = (scope.vec(&bench.weights)?, scope.vec_mut(&mut out)?);
            places.iter().try_for_each(|&at| {
                let (mut from, mut to) = (at, 0);
                let matrices = layouts.map(|layout| {
                    let (bytes, numbers) = (layout.n_bytes(), tokens * layout.rows());
                    (from, to) = (from + bytes, to + numbers);
                    let weights = PackedWeights::new(layout, all.slice(from - bytes..from));
                    (weights, out.slice_mut(to - numbers..to))
                });
                let products =
                    matrices.each_ref().map(|(weights, out)| Dense { weights, bias: None, out });
                ops::matmul_all(scope, &products, &x, Output::Replace)
            })
        })
    })?;
    product.print(bench, times);
    Ok(())
}

/// The products of a layer's experts, two of which each token uses; of gate and up, both in one launch.
pub(crate) fn experts(
    bench: &Bench,
    name: &str,
    kind: PackedType,
    rows: usize,
    cols: usize,
    tokens: usize,
) -> anyhow::Result<()> {
    let layout = PackedLayout::new(kind, rows, cols).expect("whole blocks");
    let uses = 2 * tokens;
    // Gate and up take the activations of tokens, down those of uses.
    let of_tokens = cols > rows;
    let matrices = if of_tokens { 2 } else { 1 };
    let each = layout.n_bytes();
    let bytes = matrices * each * uses.min(N_EXPERTS);
    let encoding = kind.dtype().to_string();
    let vectors = matrices * uses;
    let product = Product { name, encoding, rows, cols, tokens, bytes, vectors };
    let places = product.places(2 * each * N_EXPERTS, bench.weights.len());
    let input = if of_tokens { ExpertInput::OfTokens } else { ExpertInput::OfUses };
    let inputs = if of_tokens { tokens } else { uses };
    let Room { x, mut quantized, mut out } = Room::new(bench, inputs, cols, 2 * uses * rows)?;
    let chosen: Vec<u32> = (0..uses).map(|choice| (choice % N_EXPERTS) as u32).collect();
    let (chosen, shares) = (bench.gpu.upload(&chosen)?, bench.gpu.upload(&vec![0.5f32; uses])?);
    let starts = |matrix: usize| {
        let place = |expert: usize| ((2 * expert + matrix) * each) as u64;
        ExpertStarts::new(&bench.gpu, &(0..N_EXPERTS).map(place).collect::<Vec<_>>())
    };
    let starts = [starts(0)?, starts(1)?];
    let mut room = UsesVec::new(&bench.gpu, N_EXPERTS, tokens)?;
    let times = time(&bench.gpu, bench.rounds, &["experts"], || {
        bench.gpu.scope(|scope| {
            let grouped = room.lend(scope, tokens)?;
            grouped.group(scope, &scope.vec(&chosen)?, &scope.vec(&shares)?)?;
            let x = quantized.fill(scope, &scope.vec(&x)?, cols, Precision::Bits8)?;
            let (all, out) = (scope.vec(&bench.weights)?, scope.vec_mut(&mut out)?);
            places.iter().try_for_each(|&at| {
                let bytes = all.slice(at..at + 2 * each * N_EXPERTS);
                let of = |starts| ExpertWeights::new(scope, layout, bytes.clone(), starts);
                let weights = [of(&starts[0])?, of(&starts[1])?];
                let (first, second) =
                    (out.slice_mut(0..uses * rows), out.slice_mut(uses * rows..2 * uses * rows));
                let products = [(&weights[0], &first), (&weights[1], &second)];
                ops::matmul_experts(scope, &products[..matrices], &grouped, &x, input)
            })
        })
    })?;
    product.print(bench, times);
    Ok(())
}

/// The product of one matrix in bf16.
pub(crate) fn rows(
    bench: &Bench,
    name: &str,
    rows: usize,
    cols: usize,
    tokens: usize,
) -> anyhow::Result<()> {
    let bytes = rows * cols * size_of::<half::bf16>();
    let encoding = DType::BF16.to_string();
    let product = Product { name, encoding, rows, cols, tokens, bytes, vectors: tokens };
    let places = product.places(bytes, bench.weights.len());
    let Room { x, mut out, .. } = Room::new(bench, tokens, cols, tokens * rows)?;
    let times = time(&bench.gpu, bench.rounds, &["matvec_rows"], || {
        bench.gpu.scope(|scope| {
            let x = scope.vec(&x)?;
            let (all, out) = (scope.vec(&bench.weights)?, scope.vec_mut(&mut out)?);
            places.iter().try_for_each(|&at| {
                let bytes = all.slice(at..at + bytes);
                let weights = FloatWeights::new(DType::BF16, rows, cols, bytes, scope)?;
                ops::matmul_rows(scope, &weights, None, &x, Output::Replace, &out)
            })
        })
    })?;
    product.print(bench, times);
    Ok(())
}
