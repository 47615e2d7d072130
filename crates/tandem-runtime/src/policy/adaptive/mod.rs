//! Step by step where it was measured to be fastest, while texts are written.
//!
//! Passes of a like size have a [`Learner`] of their own, which compares whole passes: with the steps of one group moved
//! to another device, and without. A step's own time would not do, since a step on the GPU also costs what it makes the
//! others wait.

mod candidate;
mod learner;

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Policy, PolicyKind, Situation};
use crate::plan::{PassSize, Plan};
use candidate::Candidate;
use learner::Learner;

/// Places steps by measured cost.
#[derive(Debug, Default)]
pub struct Adaptive {
    learners: BTreeMap<Size, Learner>,
    /// The newest pass.
    newest: Option<(Size, Candidate, usize)>,
}

/// Passes that cost about as much a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Size {
    tokens: usize,
    context: usize,
}

impl Size {
    fn of(pass: PassSize) -> Self {
        // Each of a few tokens counts, as weights are read for all of them once.
        let tokens = if pass.tokens <= 8 { pass.tokens } else { pass.tokens.next_power_of_two() };
        // Attention to less than this costs little beside the weights.
        Self { tokens, context: pass.context.max(512).next_power_of_two() }
    }
}

impl Policy for Adaptive {
    fn kind(&self) -> PolicyKind {
        PolicyKind::Adaptive
    }

    fn place(&mut self, table: &Plan, situation: &Situation) -> Plan {
        if !situation.has_igpu {
            self.newest = None;
            return Candidate::CPU.plan(table);
        }
        let size = Size::of(situation.pass);
        let learner = self.learners.entry(size).or_default();
        // Those who wait shall not wait for experiments.
        let candidate = learner.choose(situation.waiting == 0);
        self.newest = Some((size, candidate, situation.pass.tokens));
        candidate.plan(table)
    }

    fn took(&mut self, time: Duration) {
        if let Some((size, candidate, tokens)) = self.newest.take()
            && let Some(learner) = self.learners.get_mut(&size)
        {
            learner.learn(candidate, time.as_secs_f64() / tokens as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Placement;
    use crate::policy::tests::{one_layer, situation};
    use crate::profile::Operation;

    /// What a pass takes where the GPU is fast with experts and slow with all else.
    fn time(plan: &Plan) -> Duration {
        let cost = |operation: Operation, placement| match (operation.is_of_experts(), placement) {
            (true, Placement::Igpu) => 3,
            (true, _) => 30,
            (false, Placement::Cpu) => 5,
            (false, _) => 8,
        };
        let steps = plan.steps().map(|step| cost(step.operation, step.placement));
        Duration::from_micros(steps.sum::<u64>() + 10 * plan.hand_overs() as u64)
    }

    #[test]
    fn experts_go_where_they_are_fast_and_nothing_else_does() {
        let mut policy = Adaptive::default();
        let table = Plan::everything(&one_layer(), Placement::Cpu);
        let situation = situation(0.0);
        let mut last = table.clone();
        for _ in 0..2000 {
            last = policy.place(&table, &situation);
            policy.took(time(&last));
        }
        // Those who wait are not experimented with: what comes then is the best, once a trial that has begun is over.
        let waiting = Situation { waiting: 1, ..situation };
        for _ in 0..8 {
            last = policy.place(&table, &waiting);
            policy.took(time(&last));
        }
        let single = [Placement::Cpu, Placement::Igpu]
            .map(|place| time(&Plan::everything(&one_layer(), place)));
        assert!(time(&last) < single[0].min(single[1]), "{:?}", time(&last));
        for step in last.steps().filter(|step| step.operation.is_of_experts()) {
            assert_eq!(step.placement, Placement::Igpu);
        }
        assert_eq!(last.placement(Operation::LmHead, None), Placement::Cpu);
    }

    #[test]
    fn without_a_gpu_the_cpu_computes() {
        let mut policy = Adaptive::default();
        let table = Plan::everything(&one_layer(), Placement::Igpu);
        let situation = Situation { has_igpu: false, ..situation(0.0) };
        assert_eq!(policy.place(&table, &situation).name(), "cpu");
        policy.took(Duration::from_millis(1));
    }
}
