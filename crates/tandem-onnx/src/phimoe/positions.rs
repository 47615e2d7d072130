//! What attention needs to know about the tokens' places, computed once for all layers.

use super::{Exporter, axis, cast};
use crate::graph::{Graph, Value};
use crate::proto::DataType;

/// Angles, mask and sizes.
pub(super) struct Positions {
    /// `batch x 1 x sequence x head_dim / 2`.
    pub(super) cos: Value,
    pub(super) sin: Value,
    /// Which keys a query sees: `batch x 1 x 1 x sequence x total`.
    pub(super) mask: Value,
    /// `[batch, sequence]`.
    pub(super) tokens: Value,
    /// `[total]`: past and new tokens.
    pub(super) total: Value,
}

impl Exporter<'_> {
    /// `ids`: the position of each new token, `batch x sequence`. `attention_mask`: 1 for past and new tokens that count
    /// and 0 for padding, `batch x total`.
    pub(super) fn positions(
        &self,
        g: &mut Graph,
        ids: &Value,
        attention_mask: &Value,
    ) -> Positions {
        g.set_scope("positions".to_owned());
        let (cos, sin) = self.angles(g, ids);
        let tokens = g.op("Shape", &[ids]);
        let sizes = g.op("Shape", &[attention_mask]);
        let one = g.ints(&[1]);
        let total = g.op("Gather", &[&sizes, &one]);
        let mask = self.mask(g, &tokens, &sizes, attention_mask);
        Positions { cos, sin, mask, tokens, total }
    }

    /// Cosine and sine of `position * theta^(-2i / head_dim)`.
    fn angles(&self, g: &mut Graph, ids: &Value) -> (Value, Value) {
        let (theta, width) = (self.config.rope_theta, self.config.head_dim);
        let frequency = |i: usize| 1.0 / theta.powf((2 * i) as f32 / width as f32);
        let frequencies: Vec<f32> = (0..width / 2).map(frequency).collect();
        let frequencies = g.floats("rope.frequencies", &frequencies);
        let ids = cast(g, ids, DataType::Float);
        let inner = g.ints(&[1, 3]);
        let ids = g.op("Unsqueeze", &[&ids, &inner]);
        let angles = g.op("Mul", &[&ids, &frequencies]);
        (g.op("Cos", &[&angles]), g.op("Sin", &[&angles]))
    }

    /// Query `i` sees keys `j` with `i - window < j <= i` that are no padding.
    fn mask(&self, g: &mut Graph, tokens: &Value, sizes: &Value, attention_mask: &Value) -> Value {
        let (zero, one) = (g.int(0), g.int(1));
        let sequence = g.op("Gather", &[tokens, &one]);
        let total = g.op("Gather", &[sizes, &one]);
        let past = g.op("Sub", &[&total, &sequence]);
        let keys = g.op("Range", &[&zero, &total, &one]);
        let queries = g.op("Range", &[&past, &total, &one]);
        let column = g.ints(&[1]);
        let queries = g.op("Unsqueeze", &[&queries, &column]);
        let mut seen = g.op("LessOrEqual", &[&keys, &queries]);
        if let Some(window) = self.config.sliding_window {
            let window = g.int(window as i64);
            let before = g.op("Sub", &[&queries, &window]);
            let near = g.op("Greater", &[&keys, &before]);
            seen = g.op("And", &[&seen, &near]);
        }
        let counts = cast(g, attention_mask, DataType::Bool);
        let inner = g.ints(&[1, 2, 3]);
        let counts = g.op("Unsqueeze", &[&counts, &inner]);
        g.op("And", &[&seen, &counts])
    }

    /// The first half of each head rotated with the second half by its position's angle; `x` is
    /// `batch x heads x sequence x head_dim`.
    pub(super) fn rope(&self, g: &mut Graph, x: &Value, at: &Positions) -> Value {
        let half = (self.config.head_dim / 2) as i64;
        let sizes = g.ints(&[half, half]);
        let halves = g.ops("Split", &[x, &sizes], &[axis(-1)], 2);
        let (a, b) = (&halves[0], &halves[1]);
        let (a_cos, b_sin) = (g.op("Mul", &[a, &at.cos]), g.op("Mul", &[b, &at.sin]));
        let (b_cos, a_sin) = (g.op("Mul", &[b, &at.cos]), g.op("Mul", &[a, &at.sin]));
        let first = g.op("Sub", &[&a_cos, &b_sin]);
        let second = g.op("Add", &[&b_cos, &a_sin]);
        g.op_with("Concat", &[&first, &second], &[axis(-1)])
    }
}
