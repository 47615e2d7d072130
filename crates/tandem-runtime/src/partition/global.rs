//! The section `global`: what a model must be, what devices may use, and how passes are scheduled.

use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::MEGABYTE;
use super::section::{Result, Section};
use crate::policy::PolicyKind;

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

/// How passes are scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduling {
    /// What decides where steps are computed, pass after pass.
    pub policy: PolicyKind,
    /// Whether a pass is cut into two micro-batches, of which the CPU computes one while the GPU computes the other.
    pub pipelining: bool,
    /// Whether uploads of experts have a second staging buffer to fill while the first is read.
    pub double_buffering: bool,
    /// What a micro-batch has at least: tokens of a prompt, or sequences that are decoded. Passes of fewer than twice as
    /// many are not cut, and nothing that reduces micro-batches goes below it.
    pub micro_batch: usize,
}

impl Default for Scheduling {
    /// What counts for a config that is silent.
    fn default() -> Self {
        Self {
            policy: PolicyKind::BandwidthAware,
            pipelining: true,
            double_buffering: true,
            micro_batch: 4,
        }
    }
}

pub(super) fn read(
    section: &Section<'_>,
    config: &PhimoeConfig,
    names: &[&str],
) -> Result<(Limits, Scheduling)> {
    section.only(&[
        "model_name",
        "num_layers",
        "num_experts",
        "experts_per_token",
        "cpu_memory_limit",
        "igpu_memory_limit",
        "max_cpu_bandwidth",
        "max_igpu_bandwidth",
        "scheduling_policy",
        "enable_pipelining",
        "enable_double_buffering",
        "micro_batch_size",
    ])?;
    if let Some(entry) = section.get("model_name") {
        let found = entry.node.value.to_string();
        if !names.iter().any(|name| plain(name) == plain(&found)) {
            return Err(section.invalid(entry, format!("'{}'", names.join("' or '"))));
        }
    }
    section.must_be("num_layers", config.n_layers)?;
    section.must_be("num_experts", config.n_experts)?;
    section.must_be("experts_per_token", EXPERTS_PER_TOKEN)?;
    Ok((limits(section)?, scheduling(section)?))
}

fn limits(section: &Section<'_>) -> Result<Limits> {
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

fn scheduling(section: &Section<'_>) -> Result<Scheduling> {
    let usual = Scheduling::default();
    let policies = PolicyKind::ALL.map(|kind| (kind.name(), kind));
    let flag = |key, usual| Ok(section.flag(key)?.unwrap_or(usual));
    Ok(Scheduling {
        policy: section.one_of("scheduling_policy", &policies)?.unwrap_or(usual.policy),
        pipelining: flag("enable_pipelining", usual.pipelining)?,
        double_buffering: flag("enable_double_buffering", usual.double_buffering)?,
        micro_batch: section.count("micro_batch_size", 1..=1 << 16)?.unwrap_or(usual.micro_batch),
    })
}

/// A model's name without what people write differently: organisation, case, punctuation.
fn plain(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or_default();
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}
