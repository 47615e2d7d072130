//! The partition config: what is to be computed where, and how, as a YAML file says it.
//!
//! `configs/partition.yaml` has every key with what it means. A [`Partition`] becomes a [`Planner`](crate::plan::Planner) together with what
//! `tandem calibrate` measured, which decides what `auto` and `split` without a ratio mean; without measurements the
//! thresholds do. Every decision has a [`Reason`].

mod decide;
mod global;
mod section;
mod settings;
mod table;
mod thresholds;
mod yaml;

use std::path::Path;

use tandem_gpu::ExpertCacheSettings;
use tandem_model::PhimoeConfig;

pub use decide::{Decision, Reason};
pub use global::{Limits, Scheduling};
pub use section::PartitionError;
use section::{Result, Section};
pub use settings::{
    BandwidthControl, DegradationStep, ExpertStaging, FallbackSettings, MemorySettings,
    OutputFormat, Pipelining, Stage, TelemetrySettings, ThrottleAction, Trigger, UsmMode,
};
use table::Table;
pub use table::{NoPlace, Source, Wanted, operations_named};
pub use thresholds::Conditions;
use thresholds::Thresholds;

/// What a file may have.
const SECTIONS: [&str; 9] = [
    "global",
    "static_partition",
    "dynamic_thresholds",
    "bandwidth_control",
    "pipelining",
    "memory",
    "telemetry",
    "fallback",
    "layer_overrides",
];

/// Bytes of a megabyte in the config.
const MEGABYTE: u64 = 1 << 20;

/// Where the operations of a model are to be computed, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Partition {
    /// Complete.
    table: Table,
    /// Before the stages and the table, in this order.
    overrides: Vec<Override>,
    thresholds: Thresholds,
    conditions: Conditions,
    limits: Limits,
    scheduling: Scheduling,
    bandwidth: BandwidthControl,
    pipelining: Pipelining,
    memory: MemorySettings,
    telemetry: TelemetrySettings,
    fallback: FallbackSettings,
}

/// Other wishes for layers `first` to `last`.
#[derive(Clone, Debug, PartialEq)]
struct Override {
    first: usize,
    last: usize,
    table: Table,
}

impl Default for Partition {
    /// The usual table, which `configs/partition.yaml` spells out.
    fn default() -> Self {
        Self::of(Table::usual())
    }
}

impl Partition {
    /// The same wish for every operation; the CPU computes what cannot be split where that is `split`.
    pub fn everything(wanted: Wanted) -> Self {
        Self::of(Table::everything(wanted))
    }

    fn of(table: Table) -> Self {
        Self {
            table,
            overrides: Vec::new(),
            thresholds: Thresholds::default(),
            conditions: Conditions::default(),
            limits: Limits::default(),
            scheduling: Scheduling::default(),
            bandwidth: BandwidthControl::default(),
            pipelining: Pipelining::default(),
            memory: MemorySettings::default(),
            telemetry: TelemetrySettings::default(),
            fallback: FallbackSettings::default(),
        }
    }

    /// Reads a file. What it says of the model must be so of `config` and of one of `names`.
    ///
    /// # Errors
    /// One line with file, line, key, what is expected and what is there: a file that cannot be read or is not YAML,
    /// unknown keys, keys that this version does not support, values out of range.
    pub fn read(path: &Path, config: &PhimoeConfig, names: &[&str]) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PartitionError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text, config, names)
    }

    /// As [`Self::read`], of a text that is already there; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(path: &Path, text: &str, config: &PhimoeConfig, names: &[&str]) -> Result<Self> {
        let tree = section::tree(path, text)?;
        let root = Section::root(path, &tree)?;
        root.only(&SECTIONS)?;
        let section = |name| root.section(name);
        let (limits, scheduling) = global::read(&section("global")?, config, names)?;
        Ok(Self {
            limits,
            scheduling,
            table: static_table(&section("static_partition")?)?.or(&Table::usual()),
            overrides: overrides(&section("layer_overrides")?, config.n_layers)?,
            thresholds: thresholds::read(&section("dynamic_thresholds")?)?,
            conditions: Conditions::default(),
            bandwidth: settings::bandwidth(&section("bandwidth_control")?)?,
            pipelining: settings::pipelining(&section("pipelining")?, config)?,
            memory: settings::memory(&section("memory")?)?,
            telemetry: settings::telemetry(&section("telemetry")?)?,
            fallback: settings::fallback(&section("fallback")?)?,
        })
    }

    /// Whether the GPU may take part.
    pub fn may_use_igpu(&self) -> bool {
        self.tables().any(|table| table.any(|wanted| wanted != Wanted::Cpu))
    }

    /// Whether measurements decide anything.
    pub fn asks_for_measurements(&self) -> bool {
        self.tables()
            .any(|table| table.any(|wanted| matches!(wanted, Wanted::Auto | Wanted::Split(None))))
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        let overrides = self.overrides.iter().map(|over| &over.table);
        [&self.table].into_iter().chain(self.stages()).chain(overrides)
    }

    /// What the stages of the pipeline want, where there is one.
    fn stages(&self) -> Option<&Table> {
        self.scheduling.pipelining.then_some(&self.pipelining.table)
    }

    /// Keys in which `other` differs and that count from the next start on only, where this one is in force: the files that
    /// are open, the threads that look at clocks, and the memory that is taken stay as they are.
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        let (bandwidth, others) = (&self.bandwidth, &other.bandwidth);
        let differs = [
            ("bandwidth_control.monitoring_interval_ms", bandwidth.interval != others.interval),
            ("bandwidth_control.bandwidth_window_size", bandwidth.window != others.window),
            ("memory", self.memory != other.memory),
            ("telemetry", self.telemetry != other.telemetry),
            ("global.cpu_memory_limit", self.limits.cpu_memory != other.limits.cpu_memory),
            ("global.igpu_memory_limit", self.limits.igpu_memory != other.limits.igpu_memory),
            (
                "pipelining.expert_staging",
                self.pipelining.expert_staging != other.pipelining.expert_staging,
            ),
            (
                "global.enable_double_buffering",
                self.scheduling.double_buffering != other.scheduling.double_buffering,
            ),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }

    /// What the machine is taken to be like.
    pub fn conditions(&self) -> Conditions {
        self.conditions
    }

    /// Share of the CPU's time that other programs must leave for `auto` to put a token's experts there.
    pub(crate) fn cpu_idle_threshold(&self) -> f64 {
        self.thresholds.cpu_idle
    }

    /// The same for a machine that is like this.
    #[must_use]
    pub fn under(self, conditions: Conditions) -> Self {
        Self { conditions, ..self }
    }

    /// What devices may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How passes are scheduled.
    pub fn scheduling(&self) -> Scheduling {
        self.scheduling
    }

    /// How the memory's bandwidth is watched and shared out.
    pub fn bandwidth(&self) -> &BandwidthControl {
        &self.bandwidth
    }

    /// How passes are cut into stages.
    pub fn pipelining(&self) -> &Pipelining {
        &self.pipelining
    }

    /// How devices get at memory.
    pub fn memory(&self) -> &MemorySettings {
        &self.memory
    }

    /// What a GPU with memory of its own may hold of the experts, where `reserved` bytes of it are for other things than
    /// weights.
    pub fn expert_cache(&self, reserved: u64) -> ExpertCacheSettings {
        let ExpertStaging { buffers, experts_per_buffer, prefetch } =
            self.pipelining.expert_staging;
        ExpertCacheSettings {
            enabled: self.memory.expert_cache,
            cache_bytes: self.memory.expert_cache_bytes,
            memory_limit: self.limits.igpu_memory,
            reserved,
            staging_bytes: self.memory.staging_bytes,
            staging_buffers: if self.scheduling.double_buffering { buffers } else { 1 },
            experts_per_buffer,
            prefetch: Some(prefetch),
        }
    }

    /// What is recorded, and where it goes.
    pub fn telemetry(&self) -> &TelemetrySettings {
        &self.telemetry
    }

    /// What happens when the GPU fails.
    pub fn fallback(&self) -> &FallbackSettings {
        &self.fallback
    }
}

/// The table, in either of its spellings.
fn static_table(section: &Section<'_>) -> Result<Table> {
    match section.get("layer_operations") {
        Some(entry) => {
            section.only(&["layer_operations"])?;
            Table::read(&section.section_at(entry)?)
        }
        None => Table::read(section),
    }
}

fn overrides(section: &Section<'_>, n_layers: usize) -> Result<Vec<Override>> {
    let read = |entry| {
        let inner = section.section_at(entry)?;
        let range = entry.key.strip_prefix("layer_").and_then(|range| range.split_once('_'));
        let range = range.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let valid = range.filter(|(first, last)| first <= last && *last < n_layers);
        let Some((first, last)) = valid else {
            let last = n_layers - 1;
            let expected = format!("layer_A_B with A up to B, and B up to {last}, the last layer");
            return Err(section.misplaced(entry, expected));
        };
        if let Some(entry) = inner.entries().iter().find(|entry| table::is_outside(&entry.key)) {
            return Err(inner.misplaced(entry, "an operation that layers have"));
        }
        Ok(Override { first, last, table: Table::read(&inner)? })
    };
    section.entries().iter().map(read).collect()
}
