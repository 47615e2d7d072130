//! The operations between products: short, but a launch each.

use tandem_formats::DType;
use tandem_gpu::ops::{
    self, FloatWeights, Heads, KvPages, KvRegion, Output, PageTable, Precision, QuantizedVec,
    UsesVec, attention_spans,
};
use tandem_gpu::{Gpu, GpuVec, Result, Scope, Sharing};
use tandem_memory::{KvCache, KvShape, KvType};

use crate::Bench;
use crate::timing::time;

const HIDDEN: usize = 4096;
const HEADS: Heads = Heads { queries: 16, kv: 4, dim: 128 };
const INNER: usize = 448;
const N_EXPERTS: usize = 16;
const VOCABULARY: usize = 32064;
/// Positions in the cache before these tokens.
const CONTEXT: usize = 1024;
/// Launches of a round.
const LAUNCHES: usize = 32;

/// Prints one line for each operation, and a column for each number of tokens.
pub(crate) fn all(bench: &Bench, tokens: &[usize]) -> anyhow::Result<()> {
    let counts: Vec<String> = tokens.iter().map(|n| format!("{n} tokens")).collect();
    println!("| operation | {} |", counts.join(" | "));
    println!("|---|{}", "---|".repeat(tokens.len()));
    type Measured = fn(&Bench, usize) -> Result<f64>;
    let operations: [(&str, Measured); 12] = [
        ("LayerNorm", layer_norm),
        ("quantize", quantize),
        ("both in one", norm_quantize),
        ("SiLU and quantize", silu_quantize),
        ("router's product (f32)", router_product),
        ("RoPE and KV write", rope),
        ("attention, 1024 before", attention),
        ("attention, 1024 before in q8_0", attention_8_bits),
        ("SparseMixer", router),
        ("grouping", grouping),
        ("gather", gather),
        ("argmax", argmax),
    ];
    for (name, measure) in operations {
        let cells: Result<Vec<String>> = (tokens.iter())
            .map(|&tokens| Ok(format!("{:.1}", measure(bench, tokens)? * 1e6)))
            .collect();
        println!("| {name} | {} |", cells?.join(" | "));
    }
    Ok(())
}

fn ones(gpu: &Gpu, count: usize) -> Result<GpuVec<f32>> {
    gpu.upload(&vec![1.0; count])
}

fn layer_norm(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let (x, weight) = (ones(gpu, tokens * HIDDEN)?, ones(gpu, HIDDEN)?);
    let mut out = gpu.zeros(tokens * HIDDEN)?;
    let times = time(gpu, bench.rounds, &["layer_norm"], || {
        gpu.scope(|scope| {
            let (x, weight, out) = (scope.vec(&x)?, scope.vec(&weight)?, scope.vec_mut(&mut out)?);
            (0..LAUNCHES).try_for_each(|_| ops::layer_norm(scope, &x, &weight, &weight, 1e-5, &out))
        })
    })?;
    Ok(times.kernel)
}

fn quantize(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let x = ones(gpu, tokens * HIDDEN)?;
    let mut room = QuantizedVec::new(gpu, x.len(), Precision::Bits8)?;
    let times = time(gpu, bench.rounds, &["quantize"], || {
        gpu.scope(|scope| {
            let (x, room) = (scope.vec(&x)?, room.lend(scope)?);
            (0..LAUNCHES).try_for_each(|_| room.fill(scope, &x, HIDDEN, Precision::Bits8).map(drop))
        })
    })?;
    Ok(times.kernel)
}

fn norm_quantize(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let (x, weight) = (ones(gpu, tokens * HIDDEN)?, ones(gpu, HIDDEN)?);
    let mut out = gpu.zeros(tokens * HIDDEN)?;
    let mut room = QuantizedVec::new(gpu, x.len(), Precision::Bits8)?;
    let times = time(gpu, bench.rounds, &["norm_quantize"], || {
        gpu.scope(|scope| {
            let (x, weight, out) = (scope.vec(&x)?, scope.vec(&weight)?, scope.vec_mut(&mut out)?);
            let to = (&out, &room.lend(scope)?);
            (0..LAUNCHES).try_for_each(|_| {
                ops::layer_norm_quantized(scope, &x, &weight, &weight, 1e-5, to).map(drop)
            })
        })
    })?;
    Ok(times.kernel)
}

fn silu_quantize(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let count = 2 * tokens * INNER;
    let (up, mut gate) = (ones(gpu, count)?, ones(gpu, count)?);
    let mut room = QuantizedVec::new(gpu, count, Precision::Bits8)?;
    let times = time(gpu, bench.rounds, &["silu_quantize"], || {
        gpu.scope(|scope| {
            let (up, gate, room) = (scope.vec(&up)?, scope.vec_mut(&mut gate)?, room.lend(scope)?);
            (0..LAUNCHES).try_for_each(|_| {
                let both = (&gate, &up);
                ops::silu_mul_quantized(scope, both, INNER, Precision::Bits8, &room).map(drop)
            })
        })
    })?;
    Ok(times.kernel)
}

fn router_product(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let bytes = gpu.zeros::<u8>(N_EXPERTS * HIDDEN * size_of::<f32>())?;
    let (x, mut out) = (ones(gpu, tokens * HIDDEN)?, gpu.zeros(tokens * N_EXPERTS)?);
    let times = time(gpu, bench.rounds, &["matvec_row"], || {
        gpu.scope(|scope| {
            let (bytes, x, out) = (scope.vec(&bytes)?, scope.vec(&x)?, scope.vec_mut(&mut out)?);
            let weights = FloatWeights::new(DType::F32, N_EXPERTS, HIDDEN, bytes, scope)?;
            let replace = Output::Replace;
            (0..LAUNCHES)
                .try_for_each(|_| ops::matmul_rows(scope, &weights, None, &x, replace, &out))
        })
    })?;
    Ok(times.kernel)
}

/// A layer's attention, with `tokens` at the end of a context.
struct Layer {
    kv: KvCache,
    table: PageTable,
    /// The pages, on a device with memory of its own.
    copy: Option<GpuVec<u8>>,
    q: GpuVec<f32>,
    k: GpuVec<f32>,
    angles: GpuVec<f32>,
    out: GpuVec<f32>,
    spans: GpuVec<f32>,
}

impl Layer {
    fn new(gpu: &Gpu, tokens: usize, kind: KvType) -> Result<Self> {
        let capacity = CONTEXT + tokens;
        let shape = KvShape::new(1, HEADS.kv, HEADS.dim, kind);
        let mut kv = KvCache::new_in(gpu.memory(), shape, capacity).expect("memory");
        kv.claim(0, 0, capacity).expect("room");
        let mut table = PageTable::new(gpu)?;
        table.update(gpu, &kv)?;
        let own = gpu.memory().sharing() == Sharing::None;
        Ok(Self {
            copy: own.then(|| gpu.zeros(kv.pool().bytes())).transpose()?,
            kv,
            table,
            q: ones(gpu, tokens * HEADS.queries * HEADS.dim)?,
            k: ones(gpu, tokens * HEADS.kv * HEADS.dim)?,
            angles: ones(gpu, tokens * HEADS.dim)?,
            out: gpu.zeros(tokens * HEADS.queries * HEADS.dim)?,
            spans: attention_spans(gpu, HEADS, capacity)?,
        })
    }
}

/// The pages of a layer.
fn lend<'scope>(
    scope: &'scope Scope<'scope, '_>,
    kv: &'scope mut KvCache,
    table: &'scope PageTable,
    copy: &'scope mut Option<GpuVec<u8>>,
) -> Result<KvRegion<'scope>> {
    let pages = match copy {
        Some(copy) => KvPages::lend_copy(scope, kv, &scope.vec_mut(copy)?, table)?,
        None => KvPages::lend(scope, kv, table)?,
    };
    KvRegion::new(scope, HEADS, &pages, 0)
}

fn rope(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let mut layer = Layer::new(gpu, tokens, KvType::F16)?;
    let times = time(gpu, bench.rounds, &["rope_kv"], || {
        gpu.scope(|scope| {
            let Layer { kv, table, copy, q, k, angles, .. } = &mut layer;
            let kv = lend(scope, kv, table, copy)?;
            let (q, k, angles) = (scope.vec_mut(q)?, scope.vec(k)?, scope.vec(angles)?);
            (0..LAUNCHES).try_for_each(|_| kv.rope_and_write(scope, &angles, &q, &k, &k, CONTEXT))
        })
    })?;
    Ok(times.kernel)
}

fn attention_of(bench: &Bench, tokens: usize, kind: KvType) -> Result<f64> {
    let gpu = &bench.gpu;
    let mut layer = Layer::new(gpu, tokens, kind)?;
    let times = time(gpu, bench.rounds, &["attention"], || {
        gpu.scope(|scope| {
            let Layer { kv, table, copy, q, out, spans, .. } = &mut layer;
            let kv = lend(scope, kv, table, copy)?;
            let (q, out, spans) = (scope.vec(q)?, scope.vec_mut(out)?, scope.vec_mut(spans)?);
            (0..LAUNCHES).try_for_each(|_| kv.attention(scope, &q, CONTEXT, None, &spans, &out))
        })
    })?;
    Ok(times.kernel)
}

fn attention(bench: &Bench, tokens: usize) -> Result<f64> {
    attention_of(bench, tokens, KvType::F16)
}

fn attention_8_bits(bench: &Bench, tokens: usize) -> Result<f64> {
    attention_of(bench, tokens, KvType::Q8_0)
}

fn router(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let logits = ones(gpu, tokens * N_EXPERTS)?;
    let (mut chosen, mut shares) = (gpu.zeros(2 * tokens)?, gpu.zeros(2 * tokens)?);
    let times = time(gpu, bench.rounds, &["sparsemixer"], || {
        gpu.scope(|scope| {
            let logits = scope.vec(&logits)?;
            let (chosen, shares) = (scope.vec_mut(&mut chosen)?, scope.vec_mut(&mut shares)?);
            (0..LAUNCHES).try_for_each(|_| {
                ops::sparsemixer(scope, &logits, N_EXPERTS, 0.01, &chosen, &shares)
            })
        })
    })?;
    Ok(times.kernel)
}

/// The choices of tokens that use all experts evenly, and their weights.
fn choices(gpu: &Gpu, tokens: usize) -> Result<(GpuVec<u32>, GpuVec<f32>)> {
    let chosen: Vec<u32> = (0..2 * tokens).map(|choice| (choice % N_EXPERTS) as u32).collect();
    Ok((gpu.upload(&chosen)?, ones(gpu, 2 * tokens)?))
}

fn grouping(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let (chosen, shares) = choices(gpu, tokens)?;
    let mut room = UsesVec::new(gpu, N_EXPERTS, tokens)?;
    let times = time(gpu, bench.rounds, &["group_experts"], || {
        gpu.scope(|scope| {
            let (uses, chosen) = (room.lend(scope, tokens)?, scope.vec(&chosen)?);
            let shares = scope.vec(&shares)?;
            (0..LAUNCHES).try_for_each(|_| uses.group(scope, &chosen, &shares))
        })
    })?;
    Ok(times.kernel)
}

fn gather(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let (chosen, shares) = choices(gpu, tokens)?;
    let mut room = UsesVec::new(gpu, N_EXPERTS, tokens)?;
    let (results, mut x) = (ones(gpu, 2 * tokens * HIDDEN)?, gpu.zeros(tokens * HIDDEN)?);
    let times = time(gpu, bench.rounds, &["gather"], || {
        gpu.scope(|scope| {
            let uses = room.lend(scope, tokens)?;
            uses.group(scope, &scope.vec(&chosen)?, &scope.vec(&shares)?)?;
            let (results, x) = (scope.vec(&results)?, scope.vec_mut(&mut x)?);
            (0..LAUNCHES).try_for_each(|_| uses.gather(scope, &results, HIDDEN, &x))
        })
    })?;
    Ok(times.kernel)
}

fn argmax(bench: &Bench, tokens: usize) -> Result<f64> {
    let gpu = &bench.gpu;
    let logits = ones(gpu, tokens * VOCABULARY)?;
    let mut best = gpu.zeros(tokens)?;
    let times = time(gpu, bench.rounds, &["argmax"], || {
        gpu.scope(|scope| {
            let (logits, best) = (scope.vec(&logits)?, scope.vec_mut(&mut best)?);
            (0..LAUNCHES).try_for_each(|_| ops::argmax(scope, &logits, VOCABULARY, &best))
        })
    })?;
    Ok(times.kernel)
}
