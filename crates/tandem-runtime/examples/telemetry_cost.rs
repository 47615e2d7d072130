//! What telemetry costs: `cargo run --release -p tandem-runtime --example telemetry_cost [SECONDS]`.
//!
//! Prints nanoseconds per span for who records it, and per event for the thread that reads the ring, with every kind of
//! file; then both as a share of a token that makes 400 spans in 15 ms.
#![allow(clippy::print_stdout)]

use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use tandem_runtime::bench::median;
use tandem_runtime::telemetry::{Recorder, Task, Telemetry, TelemetryParams};
use tandem_runtime::{Device, Operation};
use tempfile::TempDir;

const SPANS_PER_TOKEN: usize = 400;
const TOKEN: Duration = Duration::from_millis(15);
/// Spans recorded before the ring is read; it holds them all.
const SPANS: usize = 40_000;

const HEADER: &str =
    "| telemetry | ns per span | ns per event read | share of a token |\n|---|---|---|---|\n";

/// Which files are written.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    csv: bool,
    trace: bool,
}

const KINDS: [Kind; 4] = [
    Kind { name: "summary only", csv: false, trace: false },
    Kind { name: "csv", csv: true, trace: false },
    Kind { name: "trace", csv: false, trace: true },
    Kind { name: "csv and trace", csv: true, trace: true },
];

fn main() -> Result<()> {
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(2.0), |text| text.parse())?;
    let limit = Duration::from_secs_f64(seconds / (KINDS.len() + 1) as f64);
    let off = median(&repeat(limit, || Ok(per_span(&Recorder::off())))?);
    let mut table = String::from(HEADER);
    writeln!(table, "| off | {off:.1} | | {:.4} % |", share(off))?;
    for kind in KINDS {
        let (write, read): (Vec<f64>, Vec<f64>) =
            repeat(limit, || measure(kind))?.into_iter().unzip();
        let (write, read) = (median(&write), median(&read));
        let total = share(write + read);
        writeln!(table, "| {} | {write:.1} | {read:.1} | {total:.3} % |", kind.name)?;
    }
    println!("{table}");
    println!(
        "The reader is a thread of its own; its time counts as if it took a computing core's."
    );
    Ok(())
}

/// Nanoseconds per span, for the writer and for the reader.
fn measure(kind: Kind) -> Result<(f64, f64)> {
    let folder = TempDir::new()?;
    let file = |wanted: bool, name: &str| wanted.then(|| folder.path().join(name));
    let csv = file(kind.csv, "operations.csv");
    let trace = file(kind.trace, "trace.json");
    let telemetry =
        Telemetry::start(&TelemetryParams { csv, trace, ..TelemetryParams::new(32, 16) })?;
    let write = per_span(&telemetry.recorder());
    let started = Instant::now();
    let summary = telemetry.summary();
    let read = started.elapsed();
    anyhow::ensure!(summary.lost_events == 0, "{} events were lost", summary.lost_events);
    telemetry.finish()?;
    Ok((write, read.as_nanos() as f64 / SPANS as f64))
}

fn per_span(recorder: &Recorder) -> f64 {
    let started = Instant::now();
    for n in 0..SPANS {
        let layer = Some((n / 12 % 32) as u16);
        let task = Task::new(Operation::ALL[n % Operation::ALL.len()], layer, Device::Cpu);
        let mut span = black_box(recorder).span(task);
        span.bytes(n as u64);
    }
    started.elapsed().as_nanos() as f64 / SPANS as f64
}

/// Results of `measure` until the time is over.
fn repeat<T>(limit: Duration, mut measure: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    let started = Instant::now();
    let mut results = vec![measure()?];
    while started.elapsed() < limit {
        results.push(measure()?);
    }
    Ok(results)
}

/// Percent of a token's time that so many nanoseconds a span take.
fn share(nanoseconds: f64) -> f64 {
    100.0 * nanoseconds * SPANS_PER_TOKEN as f64 / TOKEN.as_nanos() as f64
}
