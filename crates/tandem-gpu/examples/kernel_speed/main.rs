//! How fast every kernel is on a device at the model's size, beside what the device's memory gives in the same run.
//!
//! `cargo run --release -p tandem-gpu --example kernel_speed -- [--device NAME] [--path PATH]` prints Markdown. Products
//! run over copies of a matrix that together are larger than any cache, launched one after the other as a forward pass
//! does. Two figures are of each: what one launch takes on the device by its events (median), and what it takes of
//! the time of all, with what lies between launches.
#![allow(clippy::print_stdout)]

mod others;
mod products;
mod timing;

use anyhow::{Context, ensure};
use clap::Parser;
use tandem_gpu::{DeviceChoice, DeviceKind, Gpu, GpuOptions, GpuVec, Needs, Path, ProgramCache};
use tandem_memory::PackedType;

/// Speed of the GPU's kernels at full size.
#[derive(Parser)]
struct Args {
    /// Part of the device's name; the best GPU where none is given
    #[arg(long, default_value = "auto")]
    device: String,

    /// How kernels are written: dot, subgroup, vector or portable; the best that the device has where none is given
    #[arg(long)]
    path: Option<String>,

    /// Bytes of all copies of a matrix together, in MiB: more than the device's caches
    #[arg(long)]
    stream_mib: Option<usize>,

    /// Tokens
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 256])]
    tokens: Vec<usize>,

    /// Rounds of each measurement
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What all measurements have in common.
struct Bench {
    gpu: Gpu,
    /// Bytes per second that copying reaches, read and written bytes counted alike.
    copy: f64,
    /// Weights that products run over.
    weights: GpuVec<u8>,
    rounds: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let bench = open(&args)?;
    println!("\n## Products with packed weights\n");
    products::header();
    for kind in [PackedType::Q4_0, PackedType::Q8_0] {
        for (name, rows, cols) in products::SHAPES {
            for &tokens in &args.tokens {
                products::packed(&bench, name, kind, rows, cols, tokens)?;
            }
        }
        for &tokens in &args.tokens {
            products::attention(&bench, kind, tokens)?;
        }
    }
    println!("\n## Experts: 16 of a layer, two of which a token uses, evenly\n");
    products::header();
    for kind in [PackedType::Q4_0, PackedType::Q8_0] {
        for (name, rows, cols) in products::EXPERT_SHAPES {
            for &tokens in &args.tokens {
                products::experts(&bench, name, kind, rows, cols, tokens)?;
            }
        }
    }
    println!("\n## Products with weights in rows (bf16)\n");
    products::header();
    for (name, rows, cols) in products::SHAPES {
        for &tokens in args.tokens.iter().filter(|&&tokens| tokens <= 64) {
            products::rows(&bench, name, rows, cols, tokens)?;
        }
    }
    println!("\n## Everything else: microseconds of a launch\n");
    others::all(&bench, &args.tokens)
}

/// Opens the device and says what it is and what its memory gives.
fn open(args: &Args) -> anyhow::Result<Bench> {
    let choice: DeviceChoice = args.device.parse()?;
    let device = tandem_gpu::find_device(&choice, Needs::default())?;
    let path = args.path.as_deref().map(path_named).transpose()?;
    let cache = ProgramCache::of_user();
    let gpu = Gpu::open(device, GpuOptions { path, cache, ..GpuOptions::default() })?;
    let info = gpu.device().info();
    let bandwidth = tandem_gpu::measure::bandwidth(&gpu)?;
    println!("# Kernels on {}\n", info.full_name());
    println!(
        "Driver {}, {}, {} compute units, path {}, {:?}.",
        info.driver,
        info.opencl,
        info.compute_units,
        gpu.path().name(),
        gpu.memory().sharing(),
    );
    println!(
        "Its memory: reading {:.1} GB/s, copying {:.1} GB/s (read and written bytes); an empty launch takes {:.1} us.",
        bandwidth.read / 1e9,
        bandwidth.copy / 1e9,
        timing::empty_launch(&gpu)? * 1e6,
    );
    // Caches of GPUs hold up to 60 MB; on CPUs more copies take more time than they tell.
    let mib = if info.kind == DeviceKind::Gpu { 1024 } else { 288 };
    let stream = args.stream_mib.unwrap_or(mib) << 20;
    let possible = products::LARGEST..=info.max_allocation as usize;
    ensure!(
        possible.contains(&stream),
        "--stream-mib: expected {possible:?} bytes, found {stream}"
    );
    let weights = gpu.upload(&products::weights(stream))?;
    Ok(Bench { gpu, copy: bandwidth.copy, weights, rounds: args.rounds })
}

fn path_named(name: &str) -> anyhow::Result<Path> {
    let found = Path::ALL.into_iter().find(|path| path.name() == name);
    found.with_context(|| {
        format!("--path: expected dot, subgroup, vector or portable, found '{name}'")
    })
}
