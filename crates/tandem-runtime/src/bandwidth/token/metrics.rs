//! What the token tells about itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::queue::Priority;
use crate::device::Device;
use crate::telemetry::{DurationSummary, Durations, Task};

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// By id.
    holders: BTreeMap<u64, (Task, Instant)>,
    granted: [u64; 2],
    pub(super) timed_out: u64,
    waits: Durations,
    holds: Durations,
    bytes: u64,
}

impl Log {
    /// Permit `id` was taken at `now`, after a wait.
    pub(super) fn taken(
        &mut self,
        id: u64,
        task: Task,
        priority: Priority,
        now: Instant,
        waited: Duration,
    ) {
        self.holders.insert(id, (task, now));
        self.granted[priority as usize] += 1;
        self.waits.add_duration(waited);
    }

    /// Permit `id` was given back.
    pub(super) fn given_back(&mut self, id: u64, held: Duration, bytes: u64) {
        self.holders.remove(&id);
        self.holds.add_duration(held);
        self.bytes += bytes;
    }

    /// Who holds permits, and since when.
    pub(super) fn holders(&self) -> impl Iterator<Item = &(Task, Instant)> {
        self.holders.values()
    }

    pub(super) fn metrics(&self, permits: usize, waiting: [usize; 2]) -> TokenMetrics {
        let held = self.holds.total();
        TokenMetrics {
            permits,
            holders: self.holders().map(Holder::new).collect(),
            waiting_decode: waiting[Priority::Decode as usize],
            waiting_prefill: waiting[Priority::Prefill as usize],
            granted_decode: self.granted[Priority::Decode as usize],
            granted_prefill: self.granted[Priority::Prefill as usize],
            timed_out: self.timed_out,
            wait: self.waits.summary(),
            hold: self.holds.summary(),
            bytes: self.bytes,
            // Bytes per nanosecond are GB per second.
            gbps_under_token: if held == 0 { 0.0 } else { self.bytes as f64 / held as f64 },
        }
    }
}

/// State and history of a [`BandwidthToken`](super::BandwidthToken).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenMetrics {
    /// Permits there are.
    pub permits: usize,
    /// Who holds one, in the order in which they lined up.
    pub holders: Vec<Holder>,
    /// Decode operations in the line.
    pub waiting_decode: usize,
    /// Prefill operations in the line.
    pub waiting_prefill: usize,
    /// Permits that decode has had.
    pub granted_decode: u64,
    /// Permits that prefill has had.
    pub granted_prefill: u64,
    /// Operations that gave up because their time was over.
    pub timed_out: u64,
    /// Time from lining up to having the permit, of every permit.
    pub wait: DurationSummary,
    /// Time for which permits were held, of those given back.
    pub hold: DurationSummary,
    /// Bytes moved under permits that were given back.
    pub bytes: u64,
    /// These bytes per time for which permits were held, in GB/s.
    pub gbps_under_token: f64,
}

/// Who holds a permit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Holder {
    /// Name of the operation.
    pub operation: &'static str,
    /// Its layer.
    pub layer: Option<u16>,
    /// Where it runs.
    pub device: Device,
    /// Which of the device's workers runs it.
    pub worker: u16,
    /// The work packet that it belongs to.
    pub packet: u64,
    /// For how long it has held the permit.
    pub held_ms: f64,
}

impl Holder {
    fn new((task, since): &(Task, Instant)) -> Self {
        Self {
            operation: task.operation.name(),
            layer: task.layer,
            device: task.device,
            worker: task.worker,
            packet: task.packet,
            held_ms: since.elapsed().as_secs_f64() * 1e3,
        }
    }
}
