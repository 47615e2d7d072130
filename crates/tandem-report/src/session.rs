//! The summary of a session, as its JSON file has it (`docs/telemetry.md`), checked.

use std::path::Path;

use serde::Deserialize;
use tandem_formats::{FormatError, InputFile, Result};

/// Bytes that a summary has at most. One of a model with 256 layers of 256 experts has some 2 MB.
const LARGEST: u64 = 32 << 20;

/// Operations, layers and experts of a layer, at most.
const MOST: usize = 4096;

/// Characters of a name that are shown.
const NAME_LENGTH: usize = 48;

/// What plots show of a summary.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// When it began, in UTC.
    pub started: String,
    /// How long it lasted.
    pub duration_ms: f64,
    /// Operations that ran.
    pub total_packets_processed: u64,
    /// Those that failed.
    #[serde(default)]
    pub failed_packets: u64,
    /// Records that were lost.
    #[serde(default)]
    pub lost_events: u64,
    /// Most memory that the process had.
    #[serde(default)]
    pub peak_memory_usage_mb: Option<f64>,
    /// Bytes of the CPU's operations by time.
    #[serde(default)]
    pub cpu_bandwidth_gbps: f64,
    /// Bytes of the iGPU's operations by time.
    #[serde(default)]
    pub igpu_bandwidth_gbps: f64,
    /// Share of the memory's capacity that was in use.
    #[serde(default)]
    pub utilization: Option<f64>,
    /// Each device.
    pub devices: Vec<DeviceUse>,
    /// Each operation on each device.
    #[serde(default)]
    pub operations: Vec<OperationTime>,
    /// Each layer.
    #[serde(default)]
    pub layers: Vec<LayerTime>,
    /// Tokens that each expert of each layer got.
    #[serde(default)]
    pub expert_selection_distribution: Vec<Vec<u64>>,
    /// Both devices at once.
    #[serde(default)]
    pub overlap: Option<Overlap>,
    /// Waiting of one device for the other.
    #[serde(default)]
    pub pipeline_bubbles: Option<Bubbles>,
}

/// How busy a device was.
#[derive(Clone, Debug, Deserialize)]
pub struct DeviceUse {
    /// Its name, `cpu` or `igpu`.
    pub device: String,
    /// Time in which it ran at least one operation.
    pub busy_ms: f64,
    /// Bytes that its operations counted.
    #[serde(default)]
    pub bytes: u64,
    /// These by the time in which it was busy.
    #[serde(default)]
    pub gbps_while_busy: f64,
}

/// One operation on one device.
#[derive(Clone, Debug, Deserialize)]
pub struct OperationTime {
    /// Its name.
    pub operation: String,
    /// Where it ran.
    pub device: String,
    /// How often.
    pub count: u64,
    /// Sum of its times.
    pub total_ms: f64,
    /// Mean.
    pub mean_ms: f64,
    /// What 99 % do not exceed.
    pub p99_ms: f64,
    /// Bytes by time.
    #[serde(default)]
    pub gbps: f64,
}

/// The time of a layer's operations.
#[derive(Clone, Debug, Deserialize)]
pub struct LayerTime {
    /// Its number.
    pub layer: u16,
    /// On the CPU.
    pub cpu_ms: f64,
    /// On the iGPU.
    pub igpu_ms: f64,
}

/// Both devices at once.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Overlap {
    /// Time in which both ran something.
    pub both_busy_ms: f64,
}

/// Time in which a device ran nothing while the other one did; none for a device that never ran anything.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Bubbles {
    /// Of the CPU.
    pub cpu_ms: Option<f64>,
    /// Of the iGPU.
    pub igpu_ms: Option<f64>,
}

impl Session {
    /// Reads a summary.
    ///
    /// # Errors
    /// When the file cannot be read, is not a summary, or has figures that cannot be.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = InputFile::open(path)?.read_all(LARGEST)?;
        let mut session: Self = serde_json::from_slice(&bytes).map_err(|error| {
            FormatError::invalid(path, "content", "a telemetry summary (JSON)", error)
        })?;
        session.check(path)?;
        session.shorten_names();
        Ok(session)
    }

    /// How long a device was busy; 0 for one that is not there.
    pub fn busy_ms(&self, device: &str) -> f64 {
        self.devices.iter().filter(|d| d.device == device).map(|d| d.busy_ms).sum()
    }

    fn check(&self, path: &Path) -> Result<()> {
        check_count(path, "operations", self.operations.len())?;
        check_count(path, "devices", self.devices.len())?;
        check_count(path, "layers", self.layers.len())?;
        let experts = &self.expert_selection_distribution;
        check_count(path, "expert_selection_distribution", experts.len())?;
        let width = experts.first().map_or(0, Vec::len);
        check_count(path, "expert_selection_distribution[0]", width)?;
        if let Some((layer, row)) = experts.iter().enumerate().find(|(_, row)| row.len() != width) {
            let field = format!("expert_selection_distribution[{layer}]");
            let expected = format!("{width} experts, as layer 0 has");
            return Err(FormatError::invalid(path, field, expected, row.len()));
        }
        for (field, time) in self.times() {
            // Later than any session can be: sums and axes stay far from what f64 holds.
            if !(0.0..1e15).contains(&time) {
                return Err(FormatError::invalid(path, field, "a time from 0 to 1e15 ms", time));
            }
        }
        for (field, rate) in self.rates() {
            if !(0.0..1e9).contains(&rate) {
                return Err(FormatError::invalid(path, field, "a number from 0 to 1e9", rate));
            }
        }
        Ok(())
    }

    fn times(&self) -> Vec<(String, f64)> {
        let mut times = vec![("duration_ms".to_owned(), self.duration_ms)];
        times.extend(
            self.devices.iter().enumerate().map(|(n, d)| named("devices", n, "busy_ms", d.busy_ms)),
        );
        for (n, o) in self.operations.iter().enumerate() {
            times.push(named("operations", n, "total_ms", o.total_ms));
            times.push(named("operations", n, "mean_ms", o.mean_ms));
            times.push(named("operations", n, "p99_ms", o.p99_ms));
        }
        for (n, l) in self.layers.iter().enumerate() {
            times.push(named("layers", n, "cpu_ms", l.cpu_ms));
            times.push(named("layers", n, "igpu_ms", l.igpu_ms));
        }
        let bubbles = self.pipeline_bubbles.iter().flat_map(|b| [b.cpu_ms, b.igpu_ms]).flatten();
        times.extend(bubbles.map(|ms| ("pipeline_bubbles".to_owned(), ms)));
        times.extend(self.overlap.map(|o| ("overlap.both_busy_ms".to_owned(), o.both_busy_ms)));
        times
    }

    fn rates(&self) -> Vec<(String, f64)> {
        let mut rates = vec![
            ("cpu_bandwidth_gbps".to_owned(), self.cpu_bandwidth_gbps),
            ("igpu_bandwidth_gbps".to_owned(), self.igpu_bandwidth_gbps),
        ];
        let devices = self.devices.iter().enumerate();
        rates.extend(
            devices.map(|(n, d)| named("devices", n, "gbps_while_busy", d.gbps_while_busy)),
        );
        let operations = self.operations.iter().enumerate();
        rates.extend(operations.map(|(n, o)| named("operations", n, "gbps", o.gbps)));
        rates.extend(self.utilization.map(|share| ("utilization".to_owned(), share)));
        rates.extend(self.peak_memory_usage_mb.map(|mb| ("peak_memory_usage_mb".to_owned(), mb)));
        rates
    }

    fn shorten_names(&mut self) {
        self.started = shown(&self.started);
        for device in &mut self.devices {
            device.device = shown(&device.device);
        }
        for operation in &mut self.operations {
            operation.operation = shown(&operation.operation);
            operation.device = shown(&operation.device);
        }
    }
}

/// A name as it can be shown: not too long, and without characters that XML does not bear.
pub(crate) fn shown(name: &str) -> String {
    let bearable = |c: char| {
        if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c }
    };
    name.chars().take(NAME_LENGTH).map(bearable).collect()
}

fn named(list: &str, n: usize, field: &str, value: f64) -> (String, f64) {
    (format!("{list}[{n}].{field}"), value)
}

fn check_count(path: &Path, field: &str, found: usize) -> Result<()> {
    if found <= MOST {
        return Ok(());
    }
    Err(FormatError::invalid(path, field, format_args!("at most {MOST} entries"), found))
}
