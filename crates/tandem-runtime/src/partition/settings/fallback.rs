//! The section `fallback`: what happens when the GPU fails.

use tandem_gpu::GpuError;

use crate::partition::section::{Result, Section};

/// What happens when the GPU fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackSettings {
    /// Whether the CPU computes what the GPU has failed at.
    pub enabled: bool,
    /// The failures of which it does; others end the text.
    pub triggers: Vec<Trigger>,
    /// What is changed after the first failure, after the second, and so on; after the last the GPU is put aside.
    pub steps: Vec<DegradationStep>,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Memory for the GPU could not be had.
    AllocationFailure,
    /// The GPU took far too long.
    KernelTimeout,
    /// Anything else.
    Error,
}

/// What is changed so that the GPU may fail less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DegradationStep {
    /// Half as many tokens go through the model together.
    ReduceMicroBatchSize,
    /// Passes are not cut into micro-batches any more.
    DisablePipelining,
    /// The CPU computes the experts.
    FallbackExpertsToCpu,
    /// The CPU computes everything, and the GPU is put aside.
    FullCpuMode,
}

impl Trigger {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::AllocationFailure, Self::KernelTimeout, Self::Error];

    /// The name in configs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllocationFailure => "igpu_allocation_failure",
            Self::KernelTimeout => "igpu_kernel_timeout",
            Self::Error => "igpu_error",
        }
    }

    /// The kind of a failure.
    pub fn of(error: &GpuError) -> Self {
        match error {
            GpuError::TimedOut(_) => Self::KernelTimeout,
            error if error.is_allocation() => Self::AllocationFailure,
            _ => Self::Error,
        }
    }
}

impl DegradationStep {
    /// All of them, in the usual order.
    pub const ALL: [Self; 4] = [
        Self::ReduceMicroBatchSize,
        Self::DisablePipelining,
        Self::FallbackExpertsToCpu,
        Self::FullCpuMode,
    ];

    /// The name in configs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReduceMicroBatchSize => "reduce_micro_batch_size",
            Self::DisablePipelining => "disable_pipelining",
            Self::FallbackExpertsToCpu => "fallback_experts_to_cpu",
            Self::FullCpuMode => "full_cpu_mode",
        }
    }
}

impl Default for FallbackSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            triggers: Trigger::ALL.to_vec(),
            steps: DegradationStep::ALL.to_vec(),
        }
    }
}

impl FallbackSettings {
    /// The CPU goes on after the first failure, whatever it is, and the GPU is put aside.
    pub fn at_once() -> Self {
        Self { steps: vec![DegradationStep::FullCpuMode], ..Self::default() }
    }

    /// Whether the CPU goes on after such a failure.
    pub fn covers(&self, trigger: Trigger) -> bool {
        self.enabled && self.triggers.contains(&trigger)
    }
}

pub(in crate::partition) fn read(section: &Section<'_>) -> Result<FallbackSettings> {
    section.only(&["enable_cpu_fallback", "fallback_triggers", "degradation_steps"])?;
    let usual = FallbackSettings::default();
    let triggers = Trigger::ALL.map(|trigger| (trigger.name(), trigger));
    let steps = DegradationStep::ALL.map(|step| (step.name(), step));
    Ok(FallbackSettings {
        enabled: section.flag("enable_cpu_fallback")?.unwrap_or(usual.enabled),
        triggers: section.some_of("fallback_triggers", &triggers)?.unwrap_or(usual.triggers),
        steps: section.some_of("degradation_steps", &steps)?.unwrap_or(usual.steps),
    })
}
