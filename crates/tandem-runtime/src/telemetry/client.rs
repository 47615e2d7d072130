//! The flat keys that clients have always read.

use serde::Serialize;

/// A [`Summary`](super::Summary)'s totals: `docs/telemetry.md` defines them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClientTelemetry {
    /// Operations that ran.
    pub total_packets_processed: u64,
    /// Those on the CPU.
    pub cpu_packets: u64,
    /// Those on the iGPU.
    pub igpu_packets: u64,
    /// Those that failed.
    pub failed_packets: u64,
    /// Time of operations on the CPU.
    pub total_cpu_time_ms: f64,
    /// Time of operations on the iGPU.
    pub total_igpu_time_ms: f64,
    /// Mean time of an operation on the CPU; 0 where there was none.
    pub avg_cpu_time_ms: f64,
    /// Mean time of an operation on the iGPU; 0 where there was none.
    pub avg_igpu_time_ms: f64,
    /// Requests or packets that wait.
    pub current_queue_depth: usize,
    /// Most memory that the process has had; none where the system does not tell.
    pub peak_memory_usage_mb: Option<f64>,
    /// Bytes that operations on the CPU counted, per time of the session.
    pub cpu_bandwidth_gbps: f64,
    /// The same of the iGPU.
    pub igpu_bandwidth_gbps: f64,
    /// Share of the memory's capacity that was in use; none where nobody watched or knows the capacity.
    pub utilization: Option<f64>,
    /// Share of the time in which the devices were in each other's way; none as above.
    pub cpu_igpu_contention: Option<f64>,
}
