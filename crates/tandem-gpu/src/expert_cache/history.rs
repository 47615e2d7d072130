//! Which experts a layer is likely to use next.

use super::{ExpertId, Prefetch};

/// What the layers have used so far.
#[derive(Debug)]
pub(super) struct History {
    n_experts: usize,
    /// For each layer and expert: uses, and the number of the last one.
    uses: Vec<(u64, u64)>,
    clock: u64,
}

impl History {
    pub(super) fn new(n_layers: usize, n_experts: usize) -> Self {
        Self { n_experts, uses: vec![(0, 0); n_layers * n_experts], clock: 0 }
    }

    /// Counts what one pass of a layer has used.
    pub(super) fn record(&mut self, layer: usize, experts: &[usize]) {
        self.clock += 1;
        for expert in experts {
            let (count, last) = &mut self.uses[layer * self.n_experts + expert];
            *count += 1;
            *last = self.clock;
        }
    }

    /// A layer's experts, the likeliest first.
    pub(super) fn likeliest(&self, layer: usize, by: Prefetch) -> Vec<ExpertId> {
        let mut experts: Vec<usize> = (0..self.n_experts).collect();
        if by == Prefetch::Predict {
            // The sort is stable: among equals the order stays.
            let uses = &self.uses[layer * self.n_experts..][..self.n_experts];
            experts.sort_by_key(|&expert| std::cmp::Reverse(uses[expert]));
        }
        experts.into_iter().map(|expert| ExpertId { layer, expert }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_used_and_of_equals_the_latest_are_likeliest() {
        let mut history = History::new(2, 4);
        for experts in [[0, 3], [3, 1], [2, 1]] {
            history.record(1, &experts);
        }
        let order = |layer, by| -> Vec<usize> {
            history.likeliest(layer, by).into_iter().map(|id| id.expert).collect()
        };
        assert_eq!(order(1, Prefetch::Predict), [1, 3, 2, 0]);
        assert_eq!(order(1, Prefetch::Sequential), [0, 1, 2, 3]);
        assert_eq!(order(0, Prefetch::Predict), [0, 1, 2, 3]);
    }
}
