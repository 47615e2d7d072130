//! Tandem and a peer in turns: each round times both once, and the next round has them in the other order, so that
//! neither profits from what changes slowly (clock, temperature, neighbours of a virtual machine).

use std::fs;

use anyhow::{Context, ensure};
use serde::Serialize;
use tandem_runtime::bench::Test;

use super::driver::Driver;

/// One timed run of one program.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Sample {
    pub(super) tokens_per_second: f64,
    /// Of the machine's processor time meanwhile, what the waiting program took.
    pub(super) waiting_share: f64,
    /// The same for everything that is neither of the two programs.
    pub(super) foreign_share: f64,
}

/// Both programs once, and the bandwidth between them.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Round {
    pub(super) tandem: Sample,
    pub(super) peer: Sample,
    /// Bytes per second.
    pub(super) read_bandwidth: f64,
}

/// Runs one test in turns.
pub(super) fn measure(
    tandem: &mut Driver,
    peer: &mut Driver,
    test: Test,
    repetitions: usize,
) -> anyhow::Result<Vec<Round>> {
    tandem.prepare(test).context("Tandem")?;
    peer.prepare(test).context("the peer")?;
    (0..repetitions)
        .map(|n| {
            if n % 2 == 0 {
                let first = sample(tandem, peer, test).context("Tandem")?;
                let read_bandwidth = tandem.read_bandwidth()?;
                let second = sample(peer, tandem, test).context("the peer")?;
                Ok(Round { tandem: first, peer: second, read_bandwidth })
            } else {
                let first = sample(peer, tandem, test).context("the peer")?;
                let read_bandwidth = tandem.read_bandwidth()?;
                let second = sample(tandem, peer, test).context("Tandem")?;
                Ok(Round { tandem: second, peer: first, read_bandwidth })
            }
        })
        .collect()
}

fn sample(running: &mut Driver, waiting: &Driver, test: Test) -> anyhow::Result<Sample> {
    let machine = MachineTicks::now()?;
    let (own, others) = (running.ticks()?, waiting.ticks()?);
    let seconds = running.time()?;
    let machine = MachineTicks::now()?.since(machine);
    let (own, others) = (running.ticks()? - own, waiting.ticks()? - others);
    ensure!(seconds > 0.0, "a run of {seconds} s");
    // Short runs can end before the first tick.
    let total = machine.total.max(1) as f64;
    Ok(Sample {
        tokens_per_second: test.tokens() as f64 / seconds,
        waiting_share: others as f64 / total,
        foreign_share: machine.busy.saturating_sub(own + others) as f64 / total,
    })
}

/// Processor time of all cores, in ticks.
#[derive(Clone, Copy)]
struct MachineTicks {
    busy: u64,
    total: u64,
}

impl MachineTicks {
    fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        // user nice system idle iowait irq softirq steal; what follows is part of user and nice.
        let ticks = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .map(|field| field.parse::<u64>().context("/proc/stat: expected a number"))
            .collect::<anyhow::Result<Vec<u64>>>()?;
        ensure!(ticks.len() == 8, "/proc/stat: expected 8 numbers, found {}", ticks.len());
        let total = ticks.iter().sum();
        Ok(Self { busy: total - ticks[3] - ticks[4], total })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            total: self.total.saturating_sub(earlier.total),
        }
    }
}
