//! The experts' side of a batch: who uses which expert.
//!
//! With tokens ordered by expert each expert's weights are read once, and its results lie next to each other.

use std::ops::Range;

use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::router::Routing;

/// Which tokens of a batch use which experts, ordered by expert. A *use* is a token's choice of an expert; every
/// token has two.
#[derive(Default)]
pub(crate) struct ExpertUses {
    /// Token of each use.
    pub(crate) tokens: Vec<u32>,
    /// Weight of each use.
    pub(crate) weights: Vec<f32>,
    /// The uses of each token, by rising expert.
    pub(crate) of_token: Vec<[u32; EXPERTS_PER_TOKEN]>,
    /// 0, 1, 2 and so on: the uses themselves, to be selected from.
    pub(crate) numbers: Vec<u32>,
    /// Where each expert's uses begin, and where the last one's end.
    starts: Vec<usize>,
}

impl ExpertUses {
    /// Takes a batch's routing in place of the last one's.
    pub(crate) fn fill(&mut self, routing: &[Routing], n_experts: usize) {
        self.tokens.clear();
        self.weights.clear();
        self.starts.clear();
        self.starts.push(0);
        self.of_token.clear();
        self.of_token.resize(routing.len(), [0; EXPERTS_PER_TOKEN]);
        let mut met = vec![0usize; routing.len()];
        for expert in 0..n_experts {
            for (token, r) in (0u32..).zip(routing) {
                for (_, &weight) in r.experts.iter().zip(&r.weights).filter(|(e, _)| **e == expert)
                {
                    let at = token as usize;
                    self.of_token[at][met[at]] = self.tokens.len() as u32;
                    met[at] += 1;
                    self.tokens.push(token);
                    self.weights.push(weight);
                }
            }
            self.starts.push(self.tokens.len());
        }
        self.numbers.clear();
        self.numbers.extend((0u32..).take(self.tokens.len()));
    }

    /// The experts that are used, each with the range of its uses.
    pub(crate) fn experts(&self) -> impl Iterator<Item = (u16, Range<usize>)> + '_ {
        let ranges = self.starts.windows(2).map(|bounds| bounds[0]..bounds[1]);
        (0u16..).zip(ranges).filter(|(_, range)| !range.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_ordered_by_expert_and_then_by_token() {
        let routing = [([2, 0], [0.5, 0.25]), ([2, 5], [0.75, 0.125]), ([0, 2], [1.0, 2.0])]
            .map(|(experts, weights)| Routing { experts, weights });
        let mut uses = ExpertUses::default();
        for _ in 0..2 {
            uses.fill(&routing, 6);
            let experts: Vec<_> = uses.experts().collect();
            assert_eq!(experts, [(0, 0..2), (2, 2..5), (5, 5..6)]);
            assert_eq!(uses.tokens, [0, 2, 0, 1, 2, 1]);
            assert_eq!(uses.weights, [0.25, 1.0, 0.5, 0.75, 2.0, 0.125]);
            assert_eq!(uses.of_token, [[0, 2], [3, 5], [1, 4]]);
            assert_eq!(uses.numbers, [0, 1, 2, 3, 4, 5]);
        }
        uses.fill(&[], 6);
        assert_eq!(uses.experts().count(), 0);
    }
}
