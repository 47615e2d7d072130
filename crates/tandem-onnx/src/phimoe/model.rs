//! The whole model as one graph, with the keys and values of earlier tokens going in and out.
//!
//! Names and shapes of inputs and outputs are those of Hugging Face's exports, so that programs written for these find
//! their way.

use super::Exporter;
use super::attention::Cache;
use super::positions::Positions;
use crate::graph::{Dim, Graph, Value};
use crate::proto::DataType;

/// Dimensions of inputs and outputs that are known when the model runs.
pub(super) const BATCH: Dim = Dim::Named("batch_size");
pub(super) const SEQUENCE: Dim = Dim::Named("sequence_length");
pub(super) const PAST: Dim = Dim::Named("past_sequence_length");
pub(super) const TOTAL: Dim = Dim::Named("total_sequence_length");
const LOGITS: Dim = Dim::Named("logits_length");

/// The input that says of how many tokens, the last ones of each text, logits are wanted; 0 and nothing is all.
pub(crate) const LOGITS_TO_KEEP: &str = "num_logits_to_keep";

impl Exporter<'_> {
    /// The bytes of the graph.
    pub(crate) fn model(&mut self) -> Vec<u8> {
        let c = self.config;
        let mut g = Graph::new("phimoe");
        let ids = g.input("input_ids", DataType::Int64, &[BATCH, SEQUENCE]);
        let (mask, positions) = position_inputs(&mut g);
        let kept = g.optional_int(LOGITS_TO_KEEP, 0);
        let caches: Vec<Cache> = (0..c.n_layers).map(|n| self.past(&mut g, n)).collect();

        g.set_scope("embedding".to_owned());
        let mut x = self.embedding(&mut g, &ids);
        let positions = self.positions(&mut g, &positions, &mask);
        let mut present = Vec::new();
        for (layer, past) in (0..).zip(&caches) {
            let (y, cache) = self.layer(&mut g, layer, &x, past, &positions);
            x = y;
            present.push(cache);
        }
        let logits = self.logits(&mut g, &x, &positions, &kept);
        let dims = [BATCH, LOGITS, Dim::Fixed(c.vocab_size)];
        g.output(&logits, "logits", DataType::Float, &dims);
        for (n, cache) in present.iter().enumerate() {
            self.present(&mut g, n, cache);
        }
        g.into_model()
    }

    fn layer(
        &mut self,
        g: &mut Graph,
        layer: u16,
        x: &Value,
        past: &Cache,
        at: &Positions,
    ) -> (Value, Cache) {
        g.set_scope(format!("layers.{layer}/attention"));
        let normed = self.attention_layer_norm(g, layer, x);
        let qkv = self.attention_qkv(g, layer, &normed);
        let (mixed, present) = self.attention_compute(g, &qkv, past, at);
        let x = self.attention_output(g, layer, &mixed, x);

        g.set_scope(format!("layers.{layer}/router"));
        let normed = self.moe_layer_norm(g, layer, &x);
        let logits = self.router_logits(g, layer, &normed);
        let routing = self.sparsemixer(g, &logits).named(g, layer);
        g.set_scope(format!("layers.{layer}/experts"));
        let dispatch = self.expert_dispatch(g, &normed, &routing.experts);
        let (gate, up) = self.expert_w1(g, layer, &dispatch.rows, &dispatch.counts);
        let rows = self.expert_activation(g, &gate, &up);
        let results = self.expert_w2(g, layer, &rows, &dispatch.counts);
        let y = self.expert_gather(g, &results, &dispatch.order, &routing.weights, &x);
        (y, present)
    }

    /// Logits of the last `kept` tokens of each text.
    fn logits(&mut self, g: &mut Graph, x: &Value, at: &Positions, kept: &Value) -> Value {
        g.set_scope("lm_head".to_owned());
        let hidden = g.ints(&[self.config.hidden_size as i64]);
        let by_text = g.op_with("Concat", &[&at.tokens, &hidden], &[super::axis(0)]);
        let x = g.op("Reshape", &[x, &by_text]);
        let (first, sequence) = (g.ints(&[0]), g.ints(&[1]));
        // From minus 0 on they are all.
        let start = g.op("Neg", &[kept]);
        let start = g.op("Unsqueeze", &[&start, &first]);
        let end = g.ints(&[i64::MAX]);
        let x = g.op("Slice", &[&x, &start, &end, &sequence]);
        let rows = g.ints(&[-1, self.config.hidden_size as i64]);
        let x = g.op("Reshape", &[&x, &rows]);
        let normed = self.final_layer_norm(g, &x);
        let logits = self.lm_head(g, &normed);
        let batch = g.op("Gather", &[&at.tokens, &first]);
        let inner = g.ints(&[-1, self.config.vocab_size as i64]);
        let shape = g.op_with("Concat", &[&batch, &inner], &[super::axis(0)]);
        g.op("Reshape", &[&logits, &shape])
    }

    fn past(&self, g: &mut Graph, layer: usize) -> Cache {
        let dims = self.cache_dims(PAST);
        let mut input =
            |kind| g.input(&format!("past_key_values.{layer}.{kind}"), DataType::Float, &dims);
        Cache { keys: input("key"), values: input("value") }
    }

    fn present(&self, g: &mut Graph, layer: usize, cache: &Cache) {
        let dims = self.cache_dims(TOTAL);
        for (kind, value) in [("key", &cache.keys), ("value", &cache.values)] {
            g.output(value, &format!("present.{layer}.{kind}"), DataType::Float, &dims);
        }
    }

    /// Dimensions of keys, or of values, with a number of tokens.
    pub(super) fn cache_dims(&self, tokens: Dim) -> [Dim; 4] {
        [BATCH, Dim::Fixed(self.config.n_kv_heads), tokens, Dim::Fixed(self.config.head_dim)]
    }
}

/// `attention_mask` and `position_ids`.
pub(super) fn position_inputs(g: &mut Graph) -> (Value, Value) {
    let mask = g.input("attention_mask", DataType::Int64, &[BATCH, TOTAL]);
    let positions = g.input("position_ids", DataType::Int64, &[BATCH, SEQUENCE]);
    (mask, positions)
}
