//! SparseMixer in standard operators, exactly: the comparisons of [`tandem_model::router`] in the same order, and
//! softmax over what they leave.

use super::{Exporter, axis};
use crate::graph::{Attribute, Graph, Value};

/// Each token's experts and their weights, `tokens x 2` both.
pub(super) struct Routing {
    pub(super) experts: Value,
    pub(super) weights: Value,
}

impl Routing {
    /// The same under names by which they can be found in the graph.
    pub(super) fn named(self, g: &mut Graph, layer: u16) -> Self {
        Self {
            experts: g.name(&self.experts, &format!("layers.{layer}.router.experts")),
            weights: g.name(&self.weights, &format!("layers.{layer}.router.weights")),
        }
    }
}

/// One of the two choices, for all tokens.
struct Choice {
    /// `tokens x 1`.
    expert: Value,
    /// `tokens x 1`.
    weight: Value,
}

impl Exporter<'_> {
    /// Routes tokens by their router logits, `tokens x experts`.
    pub(super) fn sparsemixer(&self, g: &mut Graph, logits: &Value) -> Routing {
        let first = self.choose(g, logits, logits, None);
        let all: Vec<i64> = (0..self.config.n_experts as i64).collect();
        let all = g.ints(&all);
        let taken = g.op("Equal", &[&all, &first.expert]);
        let nothing = g.float(f32::NEG_INFINITY);
        let rest = g.op("Where", &[&taken, &nothing, logits]);
        let second = self.choose(g, logits, &rest, Some(&taken));
        Routing {
            experts: g.op_with("Concat", &[&first.expert, &second.expert], &[axis(-1)]),
            weights: g.op_with("Concat", &[&first.weight, &second.weight], &[axis(-1)]),
        }
    }

    /// The largest of `candidates`, the first of equals, with its softmax weight among the logits that lie within
    /// `2 * jitter` of it and are not `taken`. 0/0 is NaN and NaN is not greater, so such a logit is kept.
    fn choose(
        &self,
        g: &mut Graph,
        logits: &Value,
        candidates: &Value,
        taken: Option<&Value>,
    ) -> Choice {
        let keep = ("keepdims", Attribute::Int(1));
        let expert = g.op_with("ArgMax", &[candidates], &[axis(-1), keep]);
        let max = g.op_with("GatherElements", &[logits, &expert], &[axis(-1)]);
        let distance = g.op("Sub", &[&max, logits]);
        let magnitude = g.op("Abs", &[logits]);
        let factor = g.op("Max", &[&magnitude, &max]);
        let distance = g.op("Div", &[&distance, &factor]);
        let limit = g.float(2.0 * self.config.router_jitter);
        let mut left_out = g.op("Greater", &[&distance, &limit]);
        if let Some(taken) = taken {
            left_out = g.op("Or", &[&left_out, taken]);
        }
        let nothing = g.float(f32::NEG_INFINITY);
        let kept = g.op("Where", &[&left_out, &nothing, logits]);
        let shares = g.op_with("Softmax", &[&kept], &[axis(-1)]);
        let weight = g.op_with("GatherElements", &[&shares, &expert], &[axis(-1)]);
        Choice { expert, weight }
    }
}
