//! What telemetry records.

use serde::Serialize;

use crate::device::Device;
use crate::profile::Operation;

/// What a stretch of time was spent for: an operation of a layer, and who ran it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The operation.
    pub operation: Operation,
    /// The layer; none for what a token meets once (embedding, last norm, lm_head).
    pub layer: Option<u16>,
    /// Where it runs.
    pub device: Device,
    /// Which of the device's workers (executors, queues) runs it. Tasks of one worker come one after the other.
    pub worker: u16,
    /// The work packet that it belongs to; 0 where there is none.
    pub packet: u64,
}

impl Task {
    /// A task of worker 0, for no packet.
    pub const fn new(operation: Operation, layer: Option<u16>, device: Device) -> Self {
        Self { operation, layer, device, worker: 0, packet: 0 }
    }
}

/// What happened in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// The task ran.
    Compute,
    /// The task waited for a permit of the bandwidth token.
    TokenWait,
    /// The task held a permit of the bandwidth token.
    TokenHold,
}

impl Activity {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Compute, Self::TokenWait, Self::TokenHold];
}

/// A stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub activity: Activity,
    /// For what.
    pub task: Task,
    /// Beginning, in nanoseconds since the recorder was made.
    pub start: u64,
    /// Length in nanoseconds.
    pub duration: u64,
    /// Bytes that were read from memory and written to it.
    pub bytes: u64,
    /// Why it failed, where it did.
    pub failure: Option<Box<str>>,
}

impl Event {
    /// End, in nanoseconds since the recorder was made.
    pub const fn end(&self) -> u64 {
        self.start + self.duration
    }
}

/// A quantity that has a value at every time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gauge {
    /// Requests or packets that wait.
    QueueDepth,
    /// What the CPU's operations read and write, in GB/s.
    CpuBandwidth,
    /// What the iGPU's operations read and write, in GB/s.
    IgpuBandwidth,
    /// What the memory controller moves for the whole machine, in GB/s.
    MemoryControllerBandwidth,
}

impl Gauge {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::QueueDepth,
        Self::CpuBandwidth,
        Self::IgpuBandwidth,
        Self::MemoryControllerBandwidth,
    ];

    /// The name in files, with its unit.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueDepth => "queue_depth",
            Self::CpuBandwidth => "cpu_bandwidth_gbps",
            Self::IgpuBandwidth => "igpu_bandwidth_gbps",
            Self::MemoryControllerBandwidth => "memory_controller_gbps",
        }
    }
}

/// What a quantity was at some time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// The quantity.
    pub gauge: Gauge,
    /// When, in nanoseconds since the recorder was made.
    pub at: u64,
    /// Its value.
    pub value: f64,
}

/// An entry of the ring.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A stretch of time.
    Event(Event),
    /// A point in time.
    Level(Level),
}
