//! The partition config: what is to be computed where, as a YAML file says it.
//!
//! `configs/partition.yaml` has every key with what it means. A [`Partition`] becomes a [`Planner`](crate::plan::Planner) together with what
//! `tandem calibrate` measured, which decides what `auto` and `split` without a ratio mean; without measurements the
//! thresholds do. Every decision has a [`Reason`].

mod decide;
mod section;
mod table;
mod yaml;

use std::path::Path;

use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

pub use decide::{Decision, Reason};
pub use section::PartitionError;
use section::{Result, Section};
use table::Table;
pub use table::{NoPlace, Source, Wanted, operations_named};

/// Bytes of a megabyte in the config.
const MEGABYTE: u64 = 1 << 20;

/// Sections whose keys steer what this version does not have.
const LATER_SECTIONS: [&str; 5] =
    ["bandwidth_control", "pipelining", "memory", "telemetry", "fallback"];

/// Where the operations of a model are to be computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Partition {
    /// Complete.
    table: Table,
    /// Before the table, in this order.
    overrides: Vec<Override>,
    thresholds: Thresholds,
    limits: Limits,
}

/// Other wishes for layers `first` to `last`.
#[derive(Clone, Debug, PartialEq)]
struct Override {
    first: usize,
    last: usize,
    table: Table,
}

/// What `auto` means where nothing is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Thresholds {
    /// Attention over contexts up to this length is the CPU's,
    attention_sequence_max: usize,
    /// in passes of fewer tokens than this.
    attention_batch_min: usize,
    /// Experts are the CPU's where each of them has fewer tokens than this, in the mean.
    tokens_per_expert_min: usize,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { attention_sequence_max: 512, attention_batch_min: 4, tokens_per_expert_min: 2 }
    }
}

/// What devices may use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes of weights and KV cache, in all.
    pub cpu_memory: Option<u64>,
    /// Bytes of them that the GPU may be given.
    pub igpu_memory: Option<u64>,
    /// Bytes per second that the CPU reads, instead of what was measured.
    pub cpu_bandwidth: Option<f64>,
    /// The same of the GPU.
    pub igpu_bandwidth: Option<f64>,
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
            limits: Limits::default(),
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
        root.only(
            &["global", "static_partition", "dynamic_thresholds", "layer_overrides"],
            &LATER_SECTIONS,
        )?;
        let static_partition = root.section("static_partition")?;
        Ok(Self {
            limits: global(&root.section("global")?, config, names)?,
            table: static_table(&static_partition)?.or(&Table::usual()),
            overrides: overrides(&root.section("layer_overrides")?, config.n_layers)?,
            thresholds: thresholds(&root.section("dynamic_thresholds")?)?,
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
        [&self.table].into_iter().chain(self.overrides.iter().map(|over| &over.table))
    }

    /// What devices may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

/// The table, in either of its spellings.
fn static_table(section: &Section<'_>) -> Result<Table> {
    match section.get("layer_operations") {
        Some(entry) => {
            section.only(&["layer_operations"], &[])?;
            Table::read(&section.section_at(entry)?)
        }
        None => Table::read(section),
    }
}

fn global(section: &Section<'_>, config: &PhimoeConfig, names: &[&str]) -> Result<Limits> {
    let known = [
        "model_name",
        "num_layers",
        "num_experts",
        "experts_per_token",
        "cpu_memory_limit",
        "igpu_memory_limit",
        "max_cpu_bandwidth",
        "max_igpu_bandwidth",
    ];
    let later =
        ["scheduling_policy", "enable_pipelining", "enable_double_buffering", "micro_batch_size"];
    section.only(&known, &later)?;
    if let Some(entry) = section.get("model_name") {
        let found = entry.node.value.to_string();
        if !names.iter().any(|name| plain(name) == plain(&found)) {
            return Err(section.invalid(entry, format!("'{}'", names.join("' or '"))));
        }
    }
    section.must_be("num_layers", config.n_layers)?;
    section.must_be("num_experts", config.n_experts)?;
    section.must_be("experts_per_token", EXPERTS_PER_TOKEN)?;
    // A terabyte, and a terabyte per second.
    let megabytes = |key| {
        let megabytes = section.count(key, 1..=1 << 20)?;
        Ok(megabytes.map(|megabytes| megabytes as u64 * MEGABYTE))
    };
    let gigabytes = |key| Ok(section.number(key, 0.001..=1000.0)?.map(|rate| rate * 1e9));
    Ok(Limits {
        cpu_memory: megabytes("cpu_memory_limit")?,
        igpu_memory: megabytes("igpu_memory_limit")?,
        cpu_bandwidth: gigabytes("max_cpu_bandwidth")?,
        igpu_bandwidth: gigabytes("max_igpu_bandwidth")?,
    })
}

/// A model's name without what people write differently: organisation, case, punctuation.
fn plain(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or_default();
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

fn thresholds(section: &Section<'_>) -> Result<Thresholds> {
    section.only(&["attention_to_cpu", "expert_to_cpu"], &[])?;
    let attention = section.section("attention_to_cpu")?;
    attention.only(&["sequence_length_max", "batch_size_min"], &[])?;
    let experts = section.section("expert_to_cpu")?;
    experts.only(&["tokens_per_expert_min"], &["igpu_memory_pressure", "cpu_idle"])?;
    let usual = Thresholds::default();
    let any = 0..=1 << 20;
    Ok(Thresholds {
        attention_sequence_max: attention
            .count("sequence_length_max", any.clone())?
            .unwrap_or(usual.attention_sequence_max),
        attention_batch_min: attention
            .count("batch_size_min", any.clone())?
            .unwrap_or(usual.attention_batch_min),
        tokens_per_expert_min: experts
            .count("tokens_per_expert_min", any)?
            .unwrap_or(usual.tokens_per_expert_min),
    })
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
