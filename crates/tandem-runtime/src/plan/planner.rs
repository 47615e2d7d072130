//! Which plan a forward pass follows.

use tandem_model::PhimoeConfig;

use super::{PassSize, Placement, Plan};

/// The plans of a model, and when each is followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Planner {
    /// Never empty; the last one that applies is followed, and the first always does.
    cases: Vec<Case>,
}

/// A plan, and the passes that follow it.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Tokens in the pass, at least.
    pub min_tokens: usize,
    /// Tokens in the cache after it, at least.
    pub min_context: usize,
    /// What is done then.
    pub plan: Plan,
}

impl Planner {
    /// One plan for everything.
    pub fn fixed(plan: Plan) -> Self {
        Self { cases: vec![Case { min_tokens: 0, min_context: 0, plan }] }
    }

    /// Everything on the CPU.
    pub fn cpu(config: &PhimoeConfig) -> Self {
        Self::fixed(Plan::everything(config, Placement::Cpu))
    }

    /// A plan for every pass, where plans differ only at these numbers of tokens and lengths of contexts, from which
    /// on others apply.
    pub fn compile(
        tokens: Vec<usize>,
        contexts: Vec<usize>,
        mut plan: impl FnMut(PassSize) -> Plan,
    ) -> Self {
        let cuts = |mut cuts: Vec<usize>| {
            cuts.push(1);
            cuts.retain(|&cut| cut > 0);
            cuts.sort_unstable();
            cuts.dedup();
            cuts
        };
        let contexts = cuts(contexts);
        let mut planner = Self::fixed(plan(PassSize { tokens: 1, context: 1 }));
        for tokens in cuts(tokens) {
            for &context in &contexts {
                let pass = PassSize { tokens, context };
                let plan = plan(pass);
                if *planner.plan(tokens, context) != plan {
                    planner = planner.with(Case { min_tokens: tokens, min_context: context, plan });
                }
            }
        }
        planner
    }

    /// From now on `case` goes before all others where it applies.
    #[must_use]
    pub fn with(mut self, case: Case) -> Self {
        self.cases.push(case);
        self
    }

    /// The plan for a pass of so many tokens, after which `context` tokens are in the cache.
    pub fn plan(&self, tokens: usize, context: usize) -> &Plan {
        let applies = |case: &&Case| tokens >= case.min_tokens && context >= case.min_context;
        let case = self.cases.iter().rev().find(applies);
        &case.unwrap_or(&self.cases[0]).plan
    }

    /// All plans, with the passes that follow each.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Whether the GPU takes part anywhere.
    pub fn uses_igpu(&self) -> bool {
        self.cases.iter().any(|case| case.plan.uses_igpu())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A model of two layers.
    pub(crate) fn two_layers() -> PhimoeConfig {
        PhimoeConfig {
            vocab_size: 64,
            hidden_size: 32,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 16,
            n_experts: 4,
            expert_width: 32,
            context_length: 64,
            rope_theta: 10_000.0,
            layer_norm_eps: 1e-5,
            router_jitter: 0.01,
            sliding_window: None,
        }
    }

    #[test]
    fn the_last_case_that_applies_is_followed() {
        let config = two_layers();
        let igpu = Plan::everything(&config, Placement::Igpu);
        let split = Plan::everything(&config, Placement::Split(0.5));
        let planner = Planner::cpu(&config)
            .with(Case { min_tokens: 9, min_context: 0, plan: igpu.clone() })
            .with(Case { min_tokens: 0, min_context: 100, plan: split.clone() });
        let cpu = Plan::everything(&config, Placement::Cpu);
        assert_eq!(planner.plan(1, 1), &cpu);
        assert_eq!(planner.plan(8, 99), &cpu);
        assert_eq!(planner.plan(9, 9), &igpu);
        assert_eq!(planner.plan(1, 100), &split);
        assert_eq!(planner.plan(256, 256), &split);
        assert!(planner.uses_igpu());
        assert!(!Planner::cpu(&config).uses_igpu());
    }
}
