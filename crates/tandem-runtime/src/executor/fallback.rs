//! What has been changed because the GPU failed.

use tandem_gpu::GpuError;
use tandem_memory::AllocError;

use super::Executor;
use crate::error::RuntimeError;
use crate::partition::{DegradationStep, FallbackSettings, Trigger};
use crate::plan::{Placement, Plan};
use crate::profile::Operation;

/// How far an executor has fallen back, and why.
pub(super) struct Fallback {
    pub(super) settings: FallbackSettings,
    /// Steps of the settings that were taken or left out.
    passed: usize,
    taken: Vec<Degradation>,
    /// Tokens that a pass may have.
    limit: Option<usize>,
}

/// A step back, and the failure that it was taken for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degradation {
    /// What has been changed.
    pub step: DegradationStep,
    /// The failure.
    pub reason: String,
}

impl Default for Fallback {
    /// The GPU is put aside at its first failure.
    fn default() -> Self {
        Self::new(FallbackSettings::at_once())
    }
}

impl Fallback {
    pub(super) fn new(settings: FallbackSettings) -> Self {
        Self { settings, passed: 0, taken: Vec::new(), limit: None }
    }

    pub(super) fn taken(&self) -> &[Degradation] {
        &self.taken
    }

    pub(super) fn has_taken(&self, step: DegradationStep) -> bool {
        self.taken.iter().any(|taken| taken.step == step)
    }

    /// Tokens that a pass may have, where the executor takes `batch`.
    pub(super) fn limit(&self, batch: usize) -> usize {
        self.limit.map_or(batch, |limit| limit.min(batch))
    }

    /// A plan without what has been given up.
    pub(super) fn apply(&self, plan: Plan) -> Plan {
        if !self.has_taken(DegradationStep::FallbackExpertsToCpu) {
            return plan;
        }
        plan.moved(
            |step| if is_of_experts(step.operation) { Placement::Cpu } else { step.placement },
        )
    }
}

/// Whether an operation belongs to the experts: what the usual table puts on the GPU together.
fn is_of_experts(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::ExpertDispatch
            | Operation::ExpertFfnW1
            | Operation::ExpertFfnActivation
            | Operation::ExpertFfnW2
            | Operation::ExpertGather
    )
}

/// What a pass has failed at, where that is the GPU's fault.
pub(super) fn gpu_failure(error: RuntimeError) -> Result<(Trigger, GpuError), RuntimeError> {
    match error {
        RuntimeError::Gpu(failure) => Ok((Trigger::of(&failure), failure)),
        RuntimeError::Activations(AllocError::Device { device, reason, .. }) => {
            let failure = GpuError::Missing { device, what: format!("memory: {reason}") };
            Ok((Trigger::AllocationFailure, failure))
        }
        other => Err(other),
    }
}

impl Executor {
    /// The next step back that changes anything; `None` where there is none but to put the GPU aside.
    pub(super) fn degrade(&mut self, failure: &GpuError) -> Option<DegradationStep> {
        let steps = self.fallback.settings.steps.clone();
        let rest = steps.into_iter().skip(self.fallback.passed);
        // Nothing less helps where there is no device any more.
        if failure.is_lost() {
            return None;
        }
        for step in rest {
            self.fallback.passed += 1;
            if step == DegradationStep::FullCpuMode {
                return None;
            }
            if self.takes(step) {
                let reason = failure.to_string();
                self.fallback.taken.push(Degradation { step, reason });
                return Some(step);
            }
        }
        None
    }

    /// Takes a step back; answers whether that changes anything.
    fn takes(&mut self, step: DegradationStep) -> bool {
        match step {
            DegradationStep::ReduceMicroBatchSize => {
                let (limit, least) = (self.fallback.limit(self.batch), self.least_micro_batch());
                let half = (limit / 2).max(least).max(1);
                self.fallback.limit = Some(half.min(limit));
                half < limit
            }
            DegradationStep::DisablePipelining => self.pipelining.take().is_some(),
            DegradationStep::FallbackExpertsToCpu => {
                let plans = self.planner.cases().iter().flat_map(|case| case.plan.steps());
                let mut experts = plans.filter(|step| is_of_experts(step.operation));
                experts.any(|step| step.placement.uses_igpu())
            }
            DegradationStep::FullCpuMode => true,
        }
    }

    /// What was changed because the GPU failed, in the order in which that happened.
    pub fn degradations(&self) -> &[Degradation] {
        self.fallback.taken()
    }

    /// Records that the GPU was put aside.
    pub(super) fn note_full_cpu_mode(&mut self, failure: &GpuError) {
        let (step, reason) = (DegradationStep::FullCpuMode, failure.to_string());
        self.fallback.taken.push(Degradation { step, reason });
    }
}
