//! The experts: tokens in the order of their experts, each expert's products with its own tokens, and back.
//!
//! Each choice of a token is a row. Rows are sorted by expert and split where the expert changes, so an expert computes
//! with the rows that chose it and no others; with none, its products have no rows and cost next to nothing.

use tandem_model::TensorId;
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::{Exporter, axis, cast};
use crate::graph::{Attribute, Graph, Value};
use crate::proto::DataType;

/// Choices in the order of their experts.
pub(super) struct Dispatch {
    /// The tokens' activations, `choices x hidden`.
    pub(super) rows: Value,
    /// Rows of each expert.
    pub(super) counts: Value,
    /// Which choice each row is: `token * 2 + (0 or 1)`.
    pub(super) order: Value,
}

impl Exporter<'_> {
    /// Sorts the choices; `experts` is `tokens x 2`.
    pub(super) fn expert_dispatch(&self, g: &mut Graph, x: &Value, experts: &Value) -> Dispatch {
        let all = g.ints(&[-1]);
        let experts = g.op("Reshape", &[experts, &all]);
        let n = g.op("Shape", &[&experts]);
        let (zero, one) = (g.int(0), g.int(1));
        let limit = g.op("Squeeze", &[&n]);
        let index = g.op("Range", &[&zero, &limit, &one]);
        // No two keys are equal, so the order is the same everywhere.
        let key = g.op("Mul", &[&experts, &n]);
        let key = g.op("Add", &[&key, &index]);
        let order = ascending(g, &key, &n);
        let per_token = g.int(EXPERTS_PER_TOKEN as i64);
        let tokens = g.op("Div", &[&order, &per_token]);
        Dispatch { rows: g.op("Gather", &[x, &tokens]), counts: self.counts(g, &experts), order }
    }

    /// How often each expert is chosen.
    fn counts(&self, g: &mut Graph, experts: &Value) -> Value {
        let column = g.ints(&[1]);
        let experts = g.op("Unsqueeze", &[experts, &column]);
        let all: Vec<i64> = (0..self.config.n_experts as i64).collect();
        let all = g.ints(&all);
        let chosen = g.op("Equal", &[&experts, &all]);
        let chosen = cast(g, &chosen, DataType::Int64);
        let first = g.ints(&[0]);
        g.op_with("ReduceSum", &[&chosen, &first], &[("keepdims", Attribute::Int(0))])
    }

    /// Each expert's gate and up, `choices x width` both.
    pub(super) fn expert_w1(
        &mut self,
        g: &mut Graph,
        layer: u16,
        rows: &Value,
        counts: &Value,
    ) -> (Value, Value) {
        let rows = self.by_expert(g, rows, counts);
        let gate = self.products(g, layer, &rows, L::ExpertGate);
        let up = self.products(g, layer, &rows, L::ExpertUp);
        (gate, up)
    }

    /// `silu(gate) * up`.
    pub(super) fn expert_activation(&self, g: &mut Graph, gate: &Value, up: &Value) -> Value {
        let sigmoid = g.op("Sigmoid", &[gate]);
        let silu = g.op("Mul", &[gate, &sigmoid]);
        g.op("Mul", &[&silu, up])
    }

    /// Each expert's down, `choices x hidden`.
    pub(super) fn expert_w2(
        &mut self,
        g: &mut Graph,
        layer: u16,
        rows: &Value,
        counts: &Value,
    ) -> Value {
        let rows = self.by_expert(g, rows, counts);
        self.products(g, layer, &rows, L::ExpertDown)
    }

    /// The sum of each token's two results times their weights, added to the residual stream.
    pub(super) fn expert_gather(
        &self,
        g: &mut Graph,
        results: &Value,
        order: &Value,
        weights: &Value,
        residual: &Value,
    ) -> Value {
        let n = g.op("Shape", &[order]);
        let back = ascending(g, order, &n);
        let results = g.op("Gather", &[results, &back]);
        let per_token = g.ints(&[-1, EXPERTS_PER_TOKEN as i64, self.config.hidden_size as i64]);
        let results = g.op("Reshape", &[&results, &per_token]);
        let inner = g.ints(&[-1]);
        let weights = g.op("Unsqueeze", &[weights, &inner]);
        let weighted = g.op("Mul", &[&results, &weights]);
        let choices = g.ints(&[1]);
        let sum =
            g.op_with("ReduceSum", &[&weighted, &choices], &[("keepdims", Attribute::Int(0))]);
        g.op("Add", &[residual, &sum])
    }

    fn by_expert(&self, g: &mut Graph, rows: &Value, counts: &Value) -> Vec<Value> {
        g.ops("Split", &[rows, counts], &[axis(0)], self.config.n_experts)
    }

    /// Every expert's product with its own rows, one below the other.
    fn products(
        &mut self,
        g: &mut Graph,
        layer: u16,
        rows: &[Value],
        matrix: fn(u16) -> L,
    ) -> Value {
        let products: Vec<Value> = (0..)
            .zip(rows)
            .map(|(expert, rows)| {
                self.linear(g, rows, TensorId::Layer(layer, matrix(expert)), None)
            })
            .collect();
        g.op_with("Concat", &products.iter().collect::<Vec<_>>(), &[axis(0)])
    }
}

/// Where the values of a vector of `n` different whole numbers lie, from the smallest to the largest. Of a permutation
/// this is the inverse.
fn ascending(g: &mut Graph, vector: &Value, n: &Value) -> Value {
    let smallest_first = [("largest", Attribute::Int(0)), ("sorted", Attribute::Int(1))];
    g.ops("TopK", &[vector, n], &smallest_first, 2).remove(1)
}
