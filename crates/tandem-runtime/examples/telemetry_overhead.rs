//! What telemetry costs real passes: `cargo run --release -p tandem-runtime --example telemetry_overhead -- MODEL [ROUNDS
//! [THREADS]]`.
//!
//! Decodes the same 64 tokens again and again on the CPU, in turns: unwatched; watched, with a summary; and with a CSV file
//! and a trace as well. Turns go in one direction and then in the other, and each is compared with the unwatched one of
//! its round. Prints medians.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use tandem_memory::KvType;
use tandem_model::Checkpoint;
use tandem_runtime::bandwidth::HeavyOperations;
use tandem_runtime::bench::{Prepared, Test, Work, median};
use tandem_runtime::telemetry::TelemetryParams;
use tandem_runtime::{Executor, Instrumentation, InstrumentationParams, Instruments, Model};
use tempfile::TempDir;

const TOKENS: usize = 64;
const KINDS: [&str; 3] = ["off", "summary, monitor, token", "and CSV and trace"];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("which model?")?;
    let rounds: usize = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let threads: usize = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let checkpoint = Checkpoint::open(Path::new(&path))?;
    let model = Arc::new(Model::load(&checkpoint, threads, &|_| {})?);
    let mut executor = Executor::new(model, threads, 512)?;
    let mut kv = executor.kv_cache(TOKENS + 16, KvType::F16)?;
    let test = Test { work: Work::Generate(TOKENS), depth: 0 };
    let prepared = Prepared::new(&mut executor, &mut kv, test)?;
    let folder = TempDir::new()?;
    let mut times = [const { Vec::new() }; KINDS.len()];
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..KINDS.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for kind in order {
            let watch = watch(&checkpoint, kind, folder.path())?;
            let instruments = watch.as_ref().map_or_else(Instruments::default, |w| w.instruments());
            executor.set_instruments(instruments);
            times[kind].push(prepared.time(&mut executor, &mut kv)?.as_secs_f64());
            // Writing what is left belongs to it, but not to the tokens.
            if let Some(watch) = watch {
                watch.finish()?;
            }
        }
    }
    println!("| telemetry | t/s | cost |\n|---|---|---|");
    for (kind, name) in KINDS.iter().enumerate() {
        let ratios: Vec<f64> = times[kind].iter().zip(&times[0]).map(|(a, b)| a / b).collect();
        let (rate, cost) = (TOKENS as f64 / median(&times[kind]), 100.0 * (median(&ratios) - 1.0));
        println!("| {name} | {rate:.2} | {cost:+.2} % |");
    }
    Ok(())
}

fn watch(
    checkpoint: &Checkpoint,
    kind: usize,
    folder: &Path,
) -> Result<Option<Arc<Instrumentation>>> {
    if kind == 0 {
        return Ok(None);
    }
    let config = checkpoint.config();
    let file = |name: &str| (kind > 1).then(|| folder.join(name));
    let telemetry = TelemetryParams {
        recent: 1 << 16,
        csv: file("operations.csv"),
        trace: file("trace.json"),
        ..TelemetryParams::new(config.n_layers, config.n_experts)
    };
    Ok(Some(Instrumentation::start(InstrumentationParams {
        telemetry: Some(telemetry),
        heavy: Some(HeavyOperations::default()),
        ..InstrumentationParams::default()
    })?))
}
