//! The memory's bandwidth: who may use it, who does, and how much of it at most.
//!
//! - [`BandwidthToken`]: heavy operations take turns with it; [`HeavyOperations`] says which those are.
//! - [`ByteCounters`]: what operations read and write, by device. [`Monitor`] looks at them every 10 ms and at the
//!   memory controller's counters, where the machine has them and permits it; the two are never mixed up.
//! - [`Throttle`]: background mode, which keeps Tandem's own use below a cap.
//!
//! Bandwidth is in bytes per second, or in GB/s (10^9) where a name says so.

mod counters;
mod heavy;
mod history;
mod memory_controller;
mod monitor;
mod throttle;
mod token;

pub use counters::ByteCounters;
pub use heavy::{HeavyOperations, UnknownHeavy};
pub use history::{BandwidthStats, Capacity, Source};
pub use memory_controller::{ControllerUnavailable, Traffic};
pub use monitor::{Monitor, MonitorParams};
pub use throttle::{BadCap, Clock, SystemClock, Throttle};
pub use token::{
    BandwidthToken, Holder, Permit, Priority, Ticket, TokenMetrics, TokenParams, TokenTimeout,
};
