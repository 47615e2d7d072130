//! The sections that do not place operations: what each key may be, and what it is where the config is silent.

mod bandwidth;
mod fallback;
mod memory;
mod pipelining;
mod telemetry;

pub use bandwidth::{BandwidthControl, ThrottleAction};
pub use fallback::{DegradationStep, FallbackSettings, Trigger};
pub use memory::{MemorySettings, UsmMode};
pub use pipelining::{ExpertStaging, Pipelining, Stage};
pub use telemetry::{OutputFormat, TelemetrySettings};

pub(super) use {
    bandwidth::read as bandwidth, fallback::read as fallback, memory::read as memory,
    pipelining::read as pipelining, telemetry::read as telemetry,
};
