//! A session in figures.

use std::collections::BTreeSet;

use serde::Serialize;

use super::client::ClientTelemetry;
use super::durations::{DurationSummary, milliseconds};
use super::metric::Metric;
use super::recorder::Shared;
use super::totals::Totals;
use crate::bandwidth::{BandwidthStats, TokenMetrics};
use crate::device::Device;

/// A session in figures, as JSON shows it. `docs/telemetry.md` defines each. A part ([`Metric`]) that was not asked for
/// is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// When the session began, in UTC.
    pub started: String,
    /// How long it has lasted.
    pub duration_ms: f64,
    /// What clients have always read.
    #[serde(flatten)]
    pub totals: ClientTelemetry,
    /// Records that gave way before they were read: all figures lack them.
    pub lost_events: u64,
    /// Slices and values for which the trace had no room.
    pub trace_events_left_out: u64,
    /// How busy each device was.
    pub devices: [DeviceSummary; Device::ALL.len()],
    /// Each operation on each device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<OperationSummary>>,
    /// Each layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<LayerSummary>>,
    /// The queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueSummary>,
    /// The memory's use, where it was watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<BandwidthStats>,
    /// The bandwidth token, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenMetrics>,
    /// Tokens that each expert of each layer got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_selection_distribution: Option<Vec<Vec<u64>>>,
    /// Both devices at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<OverlapSummary>,
    /// Waiting of one device for the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline_bubbles: Option<BubbleSummary>,
}

/// How busy a device was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DeviceSummary {
    /// Which device.
    pub device: Device,
    /// Time in which it ran at least one operation.
    pub busy_ms: f64,
    /// That as a share of the session.
    pub busy_share: f64,
    /// Bytes that its operations counted.
    pub bytes: u64,
    /// These per time in which it was busy; 0 where it never was.
    pub gbps_while_busy: f64,
}

/// One operation on one device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OperationSummary {
    /// Its name.
    pub operation: &'static str,
    /// Where it ran.
    pub device: Device,
    /// How long it took.
    #[serde(flatten)]
    pub time: DurationSummary,
    /// How often it failed.
    pub failed: u64,
    /// Bytes it has moved.
    pub bytes: u64,
    /// These per time it took; 0 where it took none.
    pub gbps: f64,
}

/// The time of a layer's operations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerSummary {
    /// Its number.
    pub layer: u16,
    /// Sum of the times on the CPU.
    pub cpu_ms: f64,
    /// Sum of the times on the iGPU.
    pub igpu_ms: f64,
}

/// Requests or packets that wait.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QueueSummary {
    /// Now.
    pub current: usize,
    /// The most there were.
    pub peak: usize,
    /// Mean over the session; none where nothing was said of the queue.
    pub mean: Option<f64>,
}

/// Both devices at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OverlapSummary {
    /// Time in which both ran something.
    pub both_busy_ms: f64,
    /// That as a share of the time in which at least one did; 0 where none did.
    pub share: f64,
}

/// Time in which a device ran nothing while the other one did; none for a device that never ran anything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BubbleSummary {
    /// Of the CPU.
    pub cpu_ms: Option<f64>,
    /// Of the iGPU.
    pub igpu_ms: Option<f64>,
}

/// What a summary is made from.
pub(super) struct Sources<'a> {
    pub(super) shared: &'a Shared,
    pub(super) totals: &'a Totals,
    pub(super) trace_events_left_out: u64,
    pub(super) bandwidth: Option<BandwidthStats>,
    pub(super) token: Option<TokenMetrics>,
}

/// Sums over all operations of a device.
#[derive(Clone, Copy, Default)]
struct DeviceTotal {
    count: u64,
    failed: u64,
    time: u64,
    bytes: u64,
}

impl Summary {
    pub(super) fn new(sources: Sources<'_>, metrics: &BTreeSet<Metric>) -> Self {
        let Sources { shared, totals, trace_events_left_out, bandwidth, token } = sources;
        let elapsed = shared.elapsed().as_nanos() as u64;
        let [cpu, igpu] = Device::ALL.map(|device| DeviceTotal::of(totals, device));
        // As the monitor saw it, where there is one: its time is that of the other figures it gives.
        let bandwidths = bandwidth.as_ref().map_or_else(
            || [cpu, igpu].map(|total| ratio(total.bytes, elapsed)),
            |stats| [stats.cpu_bandwidth_gbps, stats.igpu_bandwidth_gbps],
        );
        let (current, peak) = shared.queue_depths();
        let mean = totals.mean_queue_depth(elapsed);
        let asked = |metric| metrics.contains(&metric);
        Self {
            started: shared.started().to_string(),
            duration_ms: milliseconds(elapsed),
            totals: ClientTelemetry {
                total_packets_processed: cpu.count + igpu.count,
                cpu_packets: cpu.count,
                igpu_packets: igpu.count,
                failed_packets: cpu.failed + igpu.failed,
                total_cpu_time_ms: milliseconds(cpu.time),
                total_igpu_time_ms: milliseconds(igpu.time),
                avg_cpu_time_ms: ratio(cpu.time, cpu.count) / 1e6,
                avg_igpu_time_ms: ratio(igpu.time, igpu.count) / 1e6,
                current_queue_depth: current,
                peak_memory_usage_mb: asked(Metric::MemoryUsage).then(peak_memory_mb).flatten(),
                cpu_bandwidth_gbps: bandwidths[Device::Cpu as usize],
                igpu_bandwidth_gbps: bandwidths[Device::Igpu as usize],
                utilization: bandwidth.as_ref().and_then(|stats| stats.utilization),
                cpu_igpu_contention: bandwidth.as_ref().and_then(|stats| stats.cpu_igpu_contention),
            },
            lost_events: shared.lost(),
            trace_events_left_out,
            devices: Device::ALL.map(|device| device_summary(totals, device, elapsed)),
            operations: asked(Metric::KernelDuration).then(|| operation_summaries(totals)),
            layers: asked(Metric::KernelDuration).then(|| layer_summaries(totals)),
            queue: asked(Metric::QueueDepth).then_some(QueueSummary { current, peak, mean }),
            bandwidth: bandwidth.filter(|_| asked(Metric::MemoryBandwidth)),
            token: token.filter(|_| asked(Metric::MemoryBandwidth)),
            expert_selection_distribution: asked(Metric::ExpertSelectionDistribution)
                .then(|| shared.selections()),
            overlap: asked(Metric::CpuIgpuContention).then(|| overlap(totals)),
            pipeline_bubbles: asked(Metric::PipelineBubbles).then(|| bubbles(totals)),
        }
    }
}

impl DeviceTotal {
    fn of(totals: &Totals, device: Device) -> Self {
        let of_device = totals.operations().filter(|&(_, its_device, _)| its_device == device);
        of_device.fold(Self::default(), |sum, (_, _, operation)| Self {
            count: sum.count + operation.durations.count(),
            failed: sum.failed + operation.failed,
            time: sum.time + operation.durations.total(),
            bytes: sum.bytes + operation.bytes,
        })
    }
}

fn device_summary(totals: &Totals, device: Device, elapsed: u64) -> DeviceSummary {
    let busy = totals.busy(device);
    let bytes = DeviceTotal::of(totals, device).bytes;
    DeviceSummary {
        device,
        busy_ms: milliseconds(busy),
        busy_share: ratio(busy, elapsed),
        bytes,
        gbps_while_busy: ratio(bytes, busy),
    }
}

fn operation_summaries(totals: &Totals) -> Vec<OperationSummary> {
    let each = totals.operations().map(|(operation, device, total)| OperationSummary {
        operation: operation.name(),
        device,
        time: total.durations.summary(),
        failed: total.failed,
        bytes: total.bytes,
        gbps: ratio(total.bytes, total.durations.total()),
    });
    each.collect()
}

fn layer_summaries(totals: &Totals) -> Vec<LayerSummary> {
    let each = totals.layers().map(|(layer, times)| {
        let [cpu_ms, igpu_ms] = times.map(milliseconds);
        LayerSummary { layer, cpu_ms, igpu_ms }
    });
    each.collect()
}

fn overlap(totals: &Totals) -> OverlapSummary {
    let busy: u64 = Device::ALL.map(|device| totals.busy(device)).iter().sum();
    let any = totals.busy_any();
    let both = busy.saturating_sub(any);
    OverlapSummary { both_busy_ms: milliseconds(both), share: ratio(both, any) }
}

fn bubbles(totals: &Totals) -> BubbleSummary {
    let [cpu_ms, igpu_ms] = Device::ALL.map(|device| {
        let busy = totals.busy(device);
        (busy > 0).then(|| milliseconds(totals.busy_any().saturating_sub(busy)))
    });
    BubbleSummary { cpu_ms, igpu_ms }
}

/// A quotient (of bytes by nanoseconds: in GB/s); 0 where it would be of nothing.
fn ratio(amount: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { amount as f64 / of as f64 }
}

/// The most memory that this process has had resident, in MB.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((kib << 10) as f64 / 1e6)
}
