//! What a cache of experts costs and saves on a device with memory of its own, at the model's size.
//!
//! `cargo run --release -p tandem-gpu --example expert_cache_speed -- [--device NAME]` prints Markdown. Tokens go through
//! 32 layers of 16 experts, two of which each uses; before a layer's experts run its attention's products, which
//! uploads can overlap with. The CPU waits once a layer, as it must to know the router's choices. Choices are random,
//! and as uneven as the option says.
#![allow(clippy::print_stdout)]

use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use tandem_gpu::ops::{
    self, ExpertInput, ExpertWeights, Output, PackedWeights, Precision, QuantizedVec, UsesVec,
};
use tandem_gpu::{
    CacheOptions, ExpertCache, ExpertId, ExpertShape, Gpu, GpuOptions, GpuVec, MATRICES, Prefetch,
    ProgramCache, Result, Sharing,
};
use tandem_memory::{AlignedBuffer, PackedLayout, PackedType};
use tandem_testkit::Rng;

const HIDDEN: usize = 4096;
const INNER: usize = 448;
/// Rows of q, k, v and o in one matrix of as many bytes.
const ATTENTION_ROWS: usize = 5120;
const N_EXPERTS: usize = 16;

/// Speed of the expert cache.
#[derive(Parser)]
struct Args {
    /// Part of the device's name; the best GPU where none is given
    #[arg(long, default_value = "auto")]
    device: String,

    /// Use a device that shares the CPU's memory as if it had its own: only to see that this works
    #[arg(long)]
    own_memory: bool,

    /// Layers
    #[arg(long, default_value_t = 32)]
    layers: usize,

    /// Tokens, one after the other
    #[arg(long, default_value_t = 64)]
    tokens: usize,

    /// How uneven choices are: 0 for even ones; expert n of a layer is chosen in proportion to 1 / n^UNEVEN
    #[arg(long, default_value_t = 1.0)]
    uneven: f64,
}

/// What is read and written on the way of a token.
struct Layer {
    gpu: Gpu,
    attention: GpuVec<u8>,
    x: GpuVec<f32>,
    quantized: QuantizedVec,
    inner: QuantizedVec,
    gate: GpuVec<f32>,
    up: GpuVec<f32>,
    out: GpuVec<f32>,
    projected: GpuVec<f32>,
    shares: GpuVec<f32>,
    uses: UsesVec,
}

/// Layouts of gate and up, of down, and of attention's products.
struct Layouts {
    inner: PackedLayout,
    down: PackedLayout,
    attention: PackedLayout,
}

impl Layouts {
    fn new() -> Self {
        let of =
            |rows, cols| PackedLayout::new(PackedType::Q4_0, rows, cols).expect("whole blocks");
        Self {
            inner: of(INNER, HIDDEN),
            down: of(HIDDEN, INNER),
            attention: of(ATTENTION_ROWS, HIDDEN),
        }
    }

    fn shape(&self, n_layers: usize) -> ExpertShape {
        let inner = self.inner.n_bytes();
        let matrix_bytes = [inner, inner, self.down.n_bytes()];
        ExpertShape { n_layers, n_experts: N_EXPERTS, matrix_bytes }
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let device = tandem_gpu::find_device(&args.device.parse()?, tandem_gpu::Needs::default())?;
    let sharing = args.own_memory.then_some(Sharing::None);
    let cache = ProgramCache::of_user();
    let options = GpuOptions { sharing, cache, ..GpuOptions::default() };
    let gpu = Gpu::open(device, options)?;
    let info = gpu.device().info();
    println!("# Expert cache on {}, driver {}\n", info.full_name(), info.driver);
    ensure!(
        gpu.memory().sharing() == Sharing::None,
        "it shares the CPU's memory: nothing is uploaded, and there is no cache"
    );
    let layouts = Layouts::new();
    let shape = layouts.shape(args.layers);
    let expert: usize = shape.matrix_bytes.iter().sum();
    let mut experts = AlignedBuffer::zeroed(expert * args.layers * N_EXPERTS)?;
    Rng::new(1).fill(&mut experts);
    let choices = choices(&args);
    println!(
        "{} layers of {N_EXPERTS} experts, {:.2} MB each; {} tokens; unevenness {}.\n",
        args.layers,
        expert as f64 / 1e6,
        args.tokens,
        args.uneven
    );
    println!(
        "| budget | ahead | ms a token | hits | uploaded MB a token | GB/s of uploads | overlap | used of those ahead |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut layer = Layer::new(gpu, &layouts)?;
    for percent in [25, 50, 100] {
        for (name, ahead) in [
            ("nothing", None),
            ("predict", Some(Prefetch::Predict)),
            ("sequential", Some(Prefetch::Sequential)),
        ] {
            let budget = experts.len() / 100 * percent + expert;
            let options = CacheOptions { prefetch: ahead, ..CacheOptions::with_budget(budget) };
            let cache = ExpertCache::new(&layer.gpu, shape, options)?;
            let load = |id: ExpertId, into: [&mut [u8]; MATRICES]| {
                let mut from = &experts[(id.layer * N_EXPERTS + id.expert) * expert..][..expert];
                for to in into {
                    let (matrix, rest) = from.split_at(to.len());
                    to.copy_from_slice(matrix);
                    from = rest;
                }
            };
            let started = Instant::now();
            for token in &choices {
                for (index, chosen) in token.iter().enumerate() {
                    let next = (index + 1) % args.layers;
                    layer.run(&layouts, &cache, index, *chosen, load, ahead.map(|_| next))?;
                }
            }
            let seconds = started.elapsed().as_secs_f64() / args.tokens as f64;
            let done = cache.statistics()?;
            println!(
                "| {percent} % | {name} | {:.2} | {:.0} % | {:.1} | {:.1} | {:.0} % | {:.0} % |",
                seconds * 1e3,
                done.hit_rate() * 100.0,
                done.bytes as f64 / 1e6 / args.tokens as f64,
                done.bytes as f64 / done.upload_seconds / 1e9,
                done.overlap() * 100.0,
                100.0 * done.prefetched_used as f64 / done.prefetched.max(1) as f64,
            );
        }
    }
    Ok(())
}

/// Two different experts for each token and layer.
fn choices(args: &Args) -> Vec<Vec<[usize; 2]>> {
    let mut rng = Rng::new(3);
    let weights: Vec<f64> = (1..=N_EXPERTS).map(|n| (n as f64).powf(-args.uneven)).collect();
    // Another order of experts in each layer: by number would be what `sequential` guesses.
    let mut one = |layer: usize| {
        let mut at = f64::from(rng.uniform()) * weights.iter().sum::<f64>();
        let rank = weights.iter().position(|weight| {
            at -= weight;
            at < 0.0
        });
        (rank.unwrap_or(0) * 7 + layer * 5) % N_EXPERTS
    };
    let mut two = |layer| {
        let first = one(layer);
        loop {
            let second = one(layer);
            if second != first {
                return [first, second];
            }
        }
    };
    (0..args.tokens).map(|_| (0..args.layers).map(&mut two).collect()).collect()
}

impl Layer {
    fn new(gpu: Gpu, layouts: &Layouts) -> Result<Self> {
        let mut bytes = vec![0u8; layouts.attention.n_bytes()];
        Rng::new(2).fill(&mut bytes);
        Ok(Self {
            attention: gpu.upload(&bytes)?,
            x: gpu.upload(&vec![1.0; HIDDEN])?,
            quantized: QuantizedVec::new(&gpu, HIDDEN, Precision::Bits8)?,
            inner: QuantizedVec::new(&gpu, 2 * INNER, Precision::Bits8)?,
            gate: gpu.zeros(2 * INNER)?,
            up: gpu.zeros(2 * INNER)?,
            out: gpu.zeros(2 * HIDDEN)?,
            projected: gpu.zeros(ATTENTION_ROWS)?,
            shares: gpu.upload(&[0.5; 2])?,
            uses: UsesVec::new(&gpu, N_EXPERTS, 1)?,
            gpu,
        })
    }

    /// A token's way through a layer's experts, and the products of the next one's attention, during which
    /// that layer's experts are uploaded.
    fn run(
        &mut self,
        layouts: &Layouts,
        cache: &ExpertCache,
        layer: usize,
        chosen: [usize; 2],
        load: impl Fn(ExpertId, [&mut [u8]; MATRICES]),
        next: Option<usize>,
    ) -> Result<()> {
        let Self { gpu, attention, x, quantized, inner, gate, up, out, projected, shares, uses } =
            self;
        let chosen_ids = gpu.upload(&chosen.map(|expert| expert as u32))?;
        gpu.scope(|scope| {
            let uses = uses.lend(scope, 1)?;
            uses.group(scope, &scope.vec(&chosen_ids)?, &scope.vec(shares)?)?;
            let x = quantized.fill(scope, &scope.vec(x)?, HIDDEN, Precision::Bits8)?;
            let (gate, up, out) = (scope.vec_mut(gate)?, scope.vec_mut(up)?, scope.vec_mut(out)?);
            let mut held = cache.hold(scope, layer);
            held.take(&chosen, &load)?;
            let of = |layout, matrix| ExpertWeights::resident(layout, &held, matrix);
            let (w1, w3, w2) = (of(layouts.inner, 0), of(layouts.inner, 1), of(layouts.down, 2));
            let both = [(&w1, &gate), (&w3, &up)];
            ops::matmul_experts(scope, &both, &uses, &x, ExpertInput::OfTokens)?;
            let room = inner.lend(scope)?;
            let both = (&gate, &*up);
            let inner = ops::silu_mul_quantized(scope, both, INNER, Precision::Bits8, &room)?;
            ops::matmul_experts(scope, &[(&w2, &out)], &uses, &inner, ExpertInput::OfUses)?;
            drop(held);
            let projections = PackedWeights::new(layouts.attention, scope.vec(attention)?);
            let projected = scope.vec_mut(projected)?;
            ops::matmul(scope, &projections, None, &x, Output::Replace, &projected)?;
            scope.submit()?;
            next.map_or(Ok(()), |next| cache.prefetch(next, 2, &load))
        })
    }
}
