//! The table, with an eye on the memory's live bandwidth: above a share of the capacity, prompts give way.

use std::time::Duration;

use super::{Policy, PolicyKind, Situation};
use crate::partition::{BandwidthControl, ThrottleAction};
use crate::plan::{Placement, Plan};

/// Below this share of the threshold the bandwidth counts as free again: between the two nothing changes.
const RELEASE: f64 = 0.9;
/// Pauses in a row: a prompt is held up, not held off.
const MAX_PAUSES: usize = 5;

/// Acts while more of the bandwidth is in use than a threshold says.
#[derive(Clone, Debug)]
pub struct BandwidthAware {
    control: BandwidthControl,
    /// Tokens that a prompt's part has at least.
    least: usize,
    /// Whether too much was in use last time.
    above: bool,
    /// Tokens that a prompt's part has at most.
    limit: Option<usize>,
    /// Pauses since the last prompt that went without.
    pauses: usize,
}

impl BandwidthAware {
    /// Prompts' parts are not reduced below `least` tokens.
    pub fn new(control: BandwidthControl, least: usize) -> Self {
        Self { control, least: least.max(1), above: false, limit: None, pauses: 0 }
    }

    /// Looks at the bandwidth: it must fall clearly below the threshold before it counts as free again.
    fn look(&mut self, situation: &Situation) {
        let threshold = self.control.throttle_threshold;
        // What nobody knows is no reason to act; and without a GPU nobody is in anybody's way: parts of prompts that share
        // passes with the next tokens of texts are read with the same weights, and cost less bandwidth the larger they are.
        let used = situation.utilization.filter(|_| situation.has_igpu).unwrap_or(0.0);
        self.above = used > if self.above { threshold * RELEASE } else { threshold };
    }

    fn acts(&self, action: ThrottleAction) -> bool {
        self.above && self.control.throttle_action == action
    }

    /// Halves a prompt's parts while too much is in use, and doubles them again afterwards.
    fn resize(&mut self, situation: &Situation) {
        let tokens = situation.pass.tokens;
        self.limit = match self.limit {
            limit if self.acts(ThrottleAction::ReduceBatch) => {
                Some((limit.unwrap_or(tokens).min(tokens) / 2).max(self.least))
            }
            // Once a part is smaller than it might be, it is no limit any more.
            Some(limit) if tokens >= limit => Some(limit.saturating_mul(2)),
            _ => None,
        };
    }
}

impl Policy for BandwidthAware {
    fn kind(&self) -> PolicyKind {
        PolicyKind::BandwidthAware
    }

    fn pause(&mut self, situation: &Situation) -> Duration {
        self.look(situation);
        let holds_up = situation.reads && !situation.writes;
        if holds_up && self.acts(ThrottleAction::DelayLaunch) && self.pauses < MAX_PAUSES {
            self.pauses += 1;
            return self.control.interval;
        }
        self.pauses = 0;
        Duration::ZERO
    }

    fn place(&mut self, table: &Plan, situation: &Situation) -> Plan {
        if situation.reads {
            self.resize(situation);
        }
        if self.acts(ThrottleAction::FallbackCpu) {
            return table.moved(|_| Placement::Cpu);
        }
        table.clone()
    }

    fn prefill_limit(&self, batch: usize) -> usize {
        self.limit.map_or(batch, |limit| limit.min(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PassSize;
    use crate::policy::tests::{one_layer, situation};

    fn policy(action: ThrottleAction) -> BandwidthAware {
        let control = BandwidthControl { throttle_action: action, ..BandwidthControl::default() };
        BandwidthAware::new(control, 4)
    }

    fn reading(tokens: usize, utilization: f64) -> Situation {
        let pass = PassSize { tokens, context: tokens };
        Situation { pass, reads: true, writes: false, ..situation(utilization) }
    }

    /// A pass with as many tokens as the policy lets it have.
    fn pass(policy: &mut BandwidthAware, utilization: f64) -> (Duration, Plan) {
        let situation = reading(policy.prefill_limit(512), utilization);
        let pause = policy.pause(&situation);
        (pause, policy.place(&Plan::everything(&one_layer(), Placement::Igpu), &situation))
    }

    #[test]
    fn prompts_get_smaller_above_the_threshold_and_grow_again_below() {
        let mut policy = policy(ThrottleAction::ReduceBatch);
        let mut limits = |utilization: f64, passes: usize| -> Vec<usize> {
            let mut next = || {
                pass(&mut policy, utilization);
                policy.prefill_limit(512)
            };
            (0..passes).map(|_| next()).collect()
        };
        assert_eq!(limits(0.85, 2), [512, 512]);
        assert_eq!(limits(0.86, 9), [256, 128, 64, 32, 16, 8, 4, 4, 4]);
        // Still more than 0.9 of the threshold: nothing grows yet.
        assert_eq!(limits(0.8, 2), [4, 4]);
        assert_eq!(limits(0.5, 8), [8, 16, 32, 64, 128, 256, 512, 512]);
        // From below, 0.8 is free.
        assert_eq!(limits(0.8, 1), [512]);
    }

    #[test]
    fn prompts_wait_above_the_threshold_but_not_for_long_and_no_one_who_writes_waits() {
        let mut policy = policy(ThrottleAction::DelayLaunch);
        let mut pauses = |utilization: f64, passes: usize| -> usize {
            let paused = |_: &usize| !pass(&mut policy, utilization).0.is_zero();
            (0..passes).filter(paused).count()
        };
        assert_eq!(pauses(0.5, 3), 0);
        assert_eq!(pauses(0.9, 5), 5);
        assert_eq!(pauses(0.9, 1), 0);
        assert_eq!(pauses(0.9, 1), 1);
        let writing = Situation { writes: true, ..reading(64, 0.99) };
        assert!(policy.pause(&writing).is_zero());
        assert_eq!(policy.prefill_limit(512), 512);
    }

    #[test]
    fn the_cpu_takes_over_above_the_threshold() {
        let mut policy = policy(ThrottleAction::FallbackCpu);
        let mut name = |utilization: f64| pass(&mut policy, utilization).1.name();
        assert_eq!(
            [0.8, 0.9, 0.8, 0.7, 0.8].map(&mut name),
            ["igpu", "cpu", "cpu", "igpu", "igpu"]
        );
    }

    #[test]
    fn what_nobody_knows_and_a_cpu_alone_are_no_reason_to_act() {
        let mut policy = policy(ThrottleAction::FallbackCpu);
        let unknown = Situation { utilization: None, ..reading(512, 0.0) };
        let alone = Situation { has_igpu: false, ..reading(512, 1.0) };
        let table = Plan::everything(&one_layer(), Placement::Igpu);
        for situation in [unknown, alone] {
            assert!(policy.pause(&situation).is_zero());
            assert_eq!(policy.place(&table, &situation), table);
        }
    }
}
