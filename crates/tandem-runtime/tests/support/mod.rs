//! An engine that is ready, and its checks against the reference's data.

use tandem_golden::{Prompt, RouterChoices};
use tandem_memory::KvCache;
use tandem_runtime::{Executor, LogitsFor, RouterTrace, evaluate};

/// Of the range of the reference's logits.
pub(crate) const BOUND: f32 = 1e-4;

pub(crate) struct Setup {
    pub(crate) executor: Executor,
    pub(crate) kv: KvCache,
}

fn choices(trace: &RouterTrace) -> RouterChoices {
    let all = || trace.routing.iter().flatten();
    RouterChoices {
        experts: all().flat_map(|r| r.experts).map(|e| e as u32).collect(),
        weights: all().flat_map(|r| r.weights).collect(),
    }
}

impl Setup {
    pub(crate) fn check_prompt(&mut self, prompt: &Prompt, bound: f32) {
        let mut trace = RouterTrace::default();
        let logits = evaluate(
            &mut self.executor,
            &mut self.kv,
            &prompt.ids,
            LogitsFor::All,
            Some(&mut trace),
        )
        .unwrap();
        prompt.check_logits(&logits, bound);
        if prompt.router.is_some() {
            prompt.check_router(&choices(&trace), bound);
        }
    }

    pub(crate) fn check_greedy(&mut self, prompt: &Prompt) {
        let mut logits =
            evaluate(&mut self.executor, &mut self.kv, &prompt.ids, LogitsFor::Last, None).unwrap();
        for (n, &expected) in prompt.greedy.iter().enumerate() {
            let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            assert_eq!(best, expected, "{}: greedy token {n}", prompt.name);
            logits = self
                .executor
                .forward(&[best], &mut self.kv, LogitsFor::Last, None)
                .unwrap()
                .to_vec();
        }
    }
}
