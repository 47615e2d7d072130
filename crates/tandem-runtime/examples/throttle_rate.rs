//! Whether background mode holds its cap: `cargo run --release -p tandem-runtime --example throttle_rate [THREADS [SECONDS]]`.
//!
//! Reads 512 MiB again and again, in operations of the size of a model's (16 MB), below caps from 1 GB/s upwards and below
//! none. Prints what was read, by this program's own clock and by the monitor's window.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use anyhow::Result;
use tandem_cpu::measure::{Reading, read_pass};
use tandem_cpu::{Cpu, ThreadTeam};
use tandem_memory::AlignedBuffer;
use tandem_runtime::Device;
use tandem_runtime::bandwidth::{ByteCounters, Monitor, MonitorParams, Throttle};
use tandem_runtime::telemetry::Recorder;

const MEMORY: usize = 512 << 20;
const OPERATION: usize = 16_000_000;
const CAPS: [Option<f64>; 6] = [None, Some(1.0), Some(2.0), Some(5.0), Some(10.0), Some(20.0)];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let threads: usize = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let seconds: f64 = arguments.next().map_or(Ok(2.0), |text| text.parse())?;
    let cpu = Cpu::new(ThreadTeam::new(threads)?);
    let mut memory = AlignedBuffer::zeroed(MEMORY)?;
    memory.advise_huge_pages();
    // Pages that were never written are all the same page of zeros.
    memory.fill(1);
    println!("| cap GB/s | read GB/s | off by | monitor's window GB/s |\n|---|---|---|---|");
    for cap in CAPS {
        let (rate, window) = measure(&cpu, memory.typed(), cap, Duration::from_secs_f64(seconds))?;
        match cap {
            None => println!("| none | {rate:.2} | | {window:.2} |"),
            Some(cap) => {
                let off = 100.0 * (rate / cap - 1.0);
                println!("| {cap:.0} | {rate:.2} | {off:+.1} % | {window:.2} |");
            }
        }
    }
    Ok(())
}

/// GB/s below a cap: by the clock, and by the monitor's window at the end.
fn measure(cpu: &Cpu, memory: &[u64], cap: Option<f64>, limit: Duration) -> Result<(f64, f64)> {
    let throttle = cap.map(Throttle::new).transpose()?;
    let counters = ByteCounters::default();
    let monitor = Monitor::start(MonitorParams::default(), counters.clone(), Recorder::off())?;
    let operations = memory.chunks_exact(OPERATION / size_of::<u64>()).cycle();
    let started = Instant::now();
    let mut bytes = 0;
    for operation in operations.take_while(|_| started.elapsed() < limit) {
        read_pass(cpu, operation, Reading::Prefetched);
        counters.add(Device::Cpu, size_of_val(operation) as u64);
        bytes += size_of_val(operation);
        if let Some(throttle) = &throttle {
            throttle.passed(size_of_val(operation) as u64);
        }
    }
    let rate = bytes as f64 / started.elapsed().as_secs_f64() / 1e9;
    Ok((rate, monitor.window().cpu_bandwidth_gbps))
}
