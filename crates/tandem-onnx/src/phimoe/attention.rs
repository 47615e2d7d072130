//! Attention: projections, grouped-query attention over past and new keys, output projection.

use tandem_model::TensorId;
use tandem_model::catalogue::LayerTensor as L;

use super::positions::Positions;
use super::{Exporter, axis};
use crate::graph::{Attribute, Graph, Value};

/// Queries, keys and values of the new tokens, `tokens x (heads * head_dim)` each.
pub(super) struct Qkv {
    pub(super) q: Value,
    pub(super) k: Value,
    pub(super) v: Value,
}

/// Keys and values of a layer, `batch x kv_heads x length x head_dim` each; keys are rotated.
pub(super) struct Cache {
    pub(super) keys: Value,
    pub(super) values: Value,
}

impl Exporter<'_> {
    pub(super) fn attention_qkv(&mut self, g: &mut Graph, layer: u16, x: &Value) -> Qkv {
        let id = |t| TensorId::Layer(layer, t);
        Qkv {
            q: self.linear(g, x, id(L::QWeight), Some(id(L::QBias))),
            k: self.linear(g, x, id(L::KWeight), Some(id(L::KBias))),
            v: self.linear(g, x, id(L::VWeight), Some(id(L::VBias))),
        }
    }

    /// What each query gathers, `tokens x q_dim`, and the cache with the new tokens in it.
    pub(super) fn attention_compute(
        &self,
        g: &mut Graph,
        qkv: &Qkv,
        past: &Cache,
        at: &Positions,
    ) -> (Value, Cache) {
        let c = self.config;
        let q = self.heads(g, &qkv.q, c.n_heads, at);
        let k = self.heads(g, &qkv.k, c.n_kv_heads, at);
        let v = self.heads(g, &qkv.v, c.n_kv_heads, at);
        let (q, k) = (self.rope(g, &q, at), self.rope(g, &k, at));
        let present = Cache {
            keys: g.op_with("Concat", &[&past.keys, &k], &[axis(2)]),
            values: g.op_with("Concat", &[&past.values, &v], &[axis(2)]),
        };
        let mixed = self.mix(g, &q, &present, at);
        let in_order = transposed(g, &mixed, &[0, 2, 1, 3]);
        let rows = g.ints(&[-1, c.q_dim() as i64]);
        (g.op("Reshape", &[&in_order, &rows]), present)
    }

    /// `tokens x (heads * head_dim)` to `batch x heads x sequence x head_dim`.
    fn heads(&self, g: &mut Graph, x: &Value, n: usize, at: &Positions) -> Value {
        let inner = g.ints(&[n as i64, self.config.head_dim as i64]);
        let shape = g.op_with("Concat", &[&at.tokens, &inner], &[axis(0)]);
        let split = g.op("Reshape", &[x, &shape]);
        transposed(g, &split, &[0, 2, 1, 3])
    }

    /// Softmax of scaled scores times values. Query heads that share a key/value head are its rows, so that keys and
    /// values are not copied for each of them.
    fn mix(&self, g: &mut Graph, q: &Value, cache: &Cache, at: &Positions) -> Value {
        let c = self.config;
        let (kv_heads, width) = (c.n_kv_heads as i64, c.head_dim as i64);
        let scale = g.float(1.0 / (c.head_dim as f32).sqrt());
        let q = g.op("Mul", &[q, &scale]);
        let grouped = g.ints(&[0, kv_heads, -1, width]);
        let q = g.op("Reshape", &[&q, &grouped]);
        let keys = transposed(g, &cache.keys, &[0, 1, 3, 2]);
        let scores = g.op("MatMul", &[&q, &keys]);

        let by_head = g.ints(&[0, kv_heads, (c.n_heads / c.n_kv_heads) as i64, -1]);
        let by_head = g.op_with("Concat", &[&by_head, &at.total], &[axis(0)]);
        let scores = g.op("Reshape", &[&scores, &by_head]);
        // Not infinity: a row of padding that sees nothing is to become numbers, whatever they are.
        let hidden = g.float(f32::MIN);
        let scores = g.op("Where", &[&at.mask, &scores, &hidden]);
        let shares = g.op_with("Softmax", &[&scores], &[axis(-1)]);

        let by_kv_head = g.ints(&[0, kv_heads, -1]);
        let by_kv_head = g.op_with("Concat", &[&by_kv_head, &at.total], &[axis(0)]);
        let shares = g.op("Reshape", &[&shares, &by_kv_head]);
        let mixed = g.op("MatMul", &[&shares, &cache.values]);
        let by_head = g.ints(&[0, c.n_heads as i64, -1, width]);
        g.op("Reshape", &[&mixed, &by_head])
    }

    /// The product with o, added to the residual stream.
    pub(super) fn attention_output(
        &mut self,
        g: &mut Graph,
        layer: u16,
        mixed: &Value,
        residual: &Value,
    ) -> Value {
        let id = |t| TensorId::Layer(layer, t);
        let projected = self.linear(g, mixed, id(L::OWeight), Some(id(L::OBias)));
        g.op("Add", &[residual, &projected])
    }
}

fn transposed(g: &mut Graph, x: &Value, order: &[i64]) -> Value {
    g.op_with("Transpose", &[x], &[("perm", Attribute::Ints(order.to_vec()))])
}
