//! What decides where passes are computed: plans, a policy over them, the pipeline, and what happens when the GPU fails.

use std::sync::Arc;

use super::Executor;
use super::fallback::Fallback;
use crate::calibrate::Choices;
use crate::instrumentation::Instrumentation;
use crate::partition::{Conditions, DegradationStep, Partition};
use crate::plan::{PassSize, Plan, Planner};
use crate::policy::{CpuIdle, Policy, PolicyKind, Situation};

/// The table's plans while other programs leave the CPU enough of its time, and while they do not.
pub(super) struct Tables {
    idle: Planner,
    busy: Planner,
    threshold: f64,
    others: CpuIdle,
}

impl Executor {
    /// Follows a partition from now on, and the policy of that kind; `watch` tells how much of the memory's bandwidth is in
    /// use. What was changed because the GPU failed before, stays so.
    pub fn direct(
        &mut self,
        partition: &Partition,
        choices: Option<&Choices>,
        policy: PolicyKind,
        watch: Option<Arc<Instrumentation>>,
    ) {
        let config = self.model.config();
        let idle = partition.planner(config, choices);
        let conditions = Conditions { cpu_idle: 0.0, ..partition.conditions() };
        let busy = partition.clone().under(conditions).planner(config, choices);
        self.tables = (idle != busy).then(|| Tables {
            idle: idle.clone(),
            busy,
            threshold: partition.cpu_idle_threshold(),
            others: CpuIdle::default(),
        });
        self.planner = idle;
        let scheduling = partition.scheduling();
        self.least = scheduling.micro_batch;
        if self.fallback.taken().is_empty() {
            self.fallback = Fallback::new(partition.fallback().clone());
        } else {
            self.fallback.settings = partition.fallback().clone();
        }
        self.want_pipelining(scheduling.pipelining);
        self.policy = policy.policy(partition);
        self.watch = watch;
        self.direct_device_profiling(partition);
    }

    /// Kernels' times are taken where the config wants them, and where events are recorded.
    fn direct_device_profiling(&mut self, partition: &Partition) {
        let wanted = partition.telemetry().device_profiling;
        self.record_gpu_times(wanted || self.instruments.recorder().is_on());
    }

    /// What tells how much of the memory's bandwidth is in use.
    pub fn set_watch(&mut self, watch: Option<Arc<Instrumentation>>) {
        self.watch = watch;
    }

    /// Another policy decides from now on; answers the one that did, with what it has learnt.
    pub fn set_policy(&mut self, policy: Box<dyn Policy>) -> Box<dyn Policy> {
        std::mem::replace(&mut self.policy, policy)
    }

    /// The policy that decides.
    pub fn policy(&self) -> PolicyKind {
        self.policy.kind()
    }

    /// Passes are cut into micro-batches of at least so many tokens from now on, of which the GPU computes one while the CPU
    /// computes the other; `None`: they are not. Without a GPU nothing changes.
    pub fn set_pipelining(&mut self, least: Option<usize>) {
        self.pipelining = least.map(|least| least.max(1));
    }

    /// Pipelining in micro-batches of the size that the partition names, from now on or not any more. Where it was given up
    /// because the GPU failed, it stays off.
    pub(crate) fn want_pipelining(&mut self, wanted: bool) {
        let given_up = self.fallback.has_taken(DegradationStep::DisablePipelining);
        self.set_pipelining((wanted && !given_up).then_some(self.least));
    }

    /// How often the devices have computed different micro-batches at the same time.
    pub fn overlaps(&self) -> u64 {
        self.overlaps
    }

    /// Why passes are not cut into micro-batches, whatever was wanted; `None` where they are.
    pub fn pipelining_refusal(&self) -> Option<&'static str> {
        match () {
            () if self.pipelining.is_none() => Some("it is turned off"),
            () if self.igpu.is_none() => Some("there is no GPU, so there is nothing to overlap"),
            () => None,
        }
    }

    /// So many texts wait for their turn.
    pub(crate) fn set_waiting(&mut self, waiting: usize) {
        self.waiting = waiting;
    }

    /// Tokens of prompts that a pass may have now: as many as [`Self::batch`] at most.
    pub fn pass_limit(&self) -> usize {
        self.fallback.limit(self.policy.prefill_limit(self.batch)).max(1)
    }

    /// What micro-batches have at least.
    pub(super) fn least_micro_batch(&self) -> usize {
        self.least
    }

    /// Where a pass of some parts is computed; waits first where the policy wants that.
    pub(super) fn decide(
        &mut self,
        pass: PassSize,
        parts: impl Iterator<Item = usize> + Clone,
    ) -> Plan {
        let situation = Situation {
            pass,
            reads: parts.clone().any(|tokens| tokens > 1),
            writes: parts.clone().any(|tokens| tokens == 1),
            waiting: self.waiting,
            utilization: self.watch.as_ref().and_then(|watch| watch.bandwidth().utilization),
            has_igpu: self.igpu.is_some(),
        };
        let pause = self.policy.pause(&situation);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        if let Some(tables) = &mut self.tables {
            let busy = tables.others.share() < tables.threshold;
            let current = if busy { &tables.busy } else { &tables.idle };
            if self.planner != *current {
                self.planner = current.clone();
            }
        }
        let table = self.planner.plan(pass.tokens, pass.context);
        self.fallback.apply(self.policy.place(table, &situation))
    }
}
