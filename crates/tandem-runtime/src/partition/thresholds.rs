//! The section `dynamic_thresholds`: what `auto` means where nothing is measured.

use super::section::{Result, Section};

/// What `auto` means where nothing is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Thresholds {
    /// Attention over contexts up to this length is the CPU's,
    pub(super) attention_sequence_max: usize,
    /// in passes of fewer tokens than this.
    pub(super) attention_batch_min: usize,
    /// Experts are the CPU's where each of them has fewer tokens than this, in the mean,
    pub(super) tokens_per_expert_min: usize,
    /// and other programs leave it at least this share of its time;
    pub(super) cpu_idle: f64,
    /// and wherever weights and KV cache take more than this share of the GPU's memory.
    pub(super) igpu_memory_pressure: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            attention_sequence_max: 512,
            attention_batch_min: 4,
            tokens_per_expert_min: 2,
            cpu_idle: 0.5,
            igpu_memory_pressure: 0.8,
        }
    }
}

/// What the machine is like where plans are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Bytes of weights and KV cache, as a share of what the GPU may be given.
    pub igpu_memory_pressure: f64,
    /// Share of the CPU's time, 0 to 1, that other programs leave.
    pub cpu_idle: f64,
}

impl Default for Conditions {
    /// Room for everything, and nobody else.
    fn default() -> Self {
        Self { igpu_memory_pressure: 0.0, cpu_idle: 1.0 }
    }
}

pub(super) fn read(section: &Section<'_>) -> Result<Thresholds> {
    section.only(&["attention_to_cpu", "expert_to_cpu"])?;
    let attention = section.section("attention_to_cpu")?;
    attention.only(&["sequence_length_max", "batch_size_min"])?;
    let experts = section.section("expert_to_cpu")?;
    experts.only(&["tokens_per_expert_min", "igpu_memory_pressure", "cpu_idle"])?;
    let usual = Thresholds::default();
    let count =
        |section: &Section<'_>, key, usual| Ok(section.count(key, 0..=1 << 20)?.unwrap_or(usual));
    let share = |key, usual| Ok(experts.number(key, 0.0..=1.0)?.unwrap_or(usual));
    Ok(Thresholds {
        attention_sequence_max: count(
            &attention,
            "sequence_length_max",
            usual.attention_sequence_max,
        )?,
        attention_batch_min: count(&attention, "batch_size_min", usual.attention_batch_min)?,
        tokens_per_expert_min: count(
            &experts,
            "tokens_per_expert_min",
            usual.tokens_per_expert_min,
        )?,
        cpu_idle: share("cpu_idle", usual.cpu_idle)?,
        igpu_memory_pressure: share("igpu_memory_pressure", usual.igpu_memory_pressure)?,
    })
}
