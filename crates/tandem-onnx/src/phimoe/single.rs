//! Each operation of each layer as a model of its own, for placing operations one by one.
//!
//! They have the names that the profile and the partition config give to operations, and share the weights of the whole
//! model's file.

use tandem_runtime::Operation;

use super::Exporter;
use super::attention::{Cache, Qkv};
use super::model::{BATCH, PAST, SEQUENCE, TOTAL, position_inputs};
use crate::graph::{Dim, Graph};
use crate::proto::DataType::{Float, Int64};

/// `batch * sequence`.
const TOKENS: Dim = Dim::Named("tokens");
/// Two for each token.
const CHOICES: Dim = Dim::Named("choices");

/// A model of one operation.
pub(crate) struct Single {
    /// `embedding`, `layer07_router_logits`.
    pub(crate) name: String,
    /// The bytes of the graph.
    pub(crate) model: Vec<u8>,
}

impl Exporter<'_> {
    /// All operations, in the order of computation.
    pub(crate) fn single_operations(&mut self) -> Vec<Single> {
        let layers = u16::try_from(self.config.n_layers).unwrap_or(u16::MAX);
        let mut all = vec![self.single(Operation::Embedding, None)];
        for layer in 0..layers {
            let of_layer = Operation::ALL.into_iter().filter(|&operation| is_of_layer(operation));
            all.extend(of_layer.map(|operation| self.single(operation, Some(layer))));
        }
        all.push(self.single(Operation::FinalLayernorm, None));
        all.push(self.single(Operation::LmHead, None));
        all
    }

    fn single(&mut self, operation: Operation, layer: Option<u16>) -> Single {
        let name = match layer {
            Some(layer) => format!("layer{layer:02}_{}", operation.name()),
            None => operation.name().to_owned(),
        };
        let mut g = Graph::new(&name);
        self.build(&mut g, operation, layer.unwrap_or_default());
        Single { name, model: g.into_model() }
    }

    /// Inputs, nodes and outputs of an operation.
    fn build(&mut self, g: &mut Graph, operation: Operation, layer: u16) {
        let hidden = [TOKENS, Dim::Fixed(self.config.hidden_size)];
        let (dispatched, width) = (
            [CHOICES, Dim::Fixed(self.config.hidden_size)],
            [CHOICES, Dim::Fixed(self.config.expert_width)],
        );
        let counts = [Dim::Fixed(self.config.n_experts)];
        match operation {
            Operation::Embedding => {
                let ids = g.input("input_ids", Int64, &[BATCH, SEQUENCE]);
                let x = self.embedding(g, &ids);
                g.output(&x, "hidden", Float, &hidden);
            }
            Operation::AttentionLayernorm => {
                let x = g.input("hidden", Float, &hidden);
                let y = self.attention_layer_norm(g, layer, &x);
                g.output(&y, "normed", Float, &hidden);
            }
            Operation::AttentionQkvProj => self.build_qkv(g, layer),
            Operation::AttentionCompute => self.build_attention(g),
            Operation::AttentionOutputProj => {
                let mixed = g.input("mixed", Float, &[TOKENS, Dim::Fixed(self.config.q_dim())]);
                let x = g.input("residual", Float, &hidden);
                let y = self.attention_output(g, layer, &mixed, &x);
                g.output(&y, "hidden", Float, &hidden);
            }
            Operation::MoeLayernorm => {
                let x = g.input("hidden", Float, &hidden);
                let y = self.moe_layer_norm(g, layer, &x);
                g.output(&y, "normed", Float, &hidden);
            }
            Operation::RouterLogits => {
                let x = g.input("normed", Float, &hidden);
                let y = self.router_logits(g, layer, &x);
                g.output(&y, "router_logits", Float, &[TOKENS, counts[0]]);
            }
            Operation::ExpertSelection => {
                let logits = g.input("router_logits", Float, &[TOKENS, counts[0]]);
                let routing = self.sparsemixer(g, &logits);
                g.output(&routing.experts, "experts", Int64, &[TOKENS, Dim::Fixed(2)]);
                g.output(&routing.weights, "weights", Float, &[TOKENS, Dim::Fixed(2)]);
            }
            Operation::ExpertDispatch => {
                let x = g.input("normed", Float, &hidden);
                let experts = g.input("experts", Int64, &[TOKENS, Dim::Fixed(2)]);
                let dispatch = self.expert_dispatch(g, &x, &experts);
                g.output(&dispatch.rows, "rows", Float, &dispatched);
                g.output(&dispatch.counts, "counts", Int64, &counts);
                g.output(&dispatch.order, "order", Int64, &[CHOICES]);
            }
            Operation::ExpertFfnW1 => {
                let rows = g.input("rows", Float, &dispatched);
                let counts = g.input("counts", Int64, &counts);
                let (gate, up) = self.expert_w1(g, layer, &rows, &counts);
                g.output(&gate, "gate", Float, &width);
                g.output(&up, "up", Float, &width);
            }
            Operation::ExpertFfnActivation => {
                let (gate, up) = (g.input("gate", Float, &width), g.input("up", Float, &width));
                let y = self.expert_activation(g, &gate, &up);
                g.output(&y, "activated", Float, &width);
            }
            Operation::ExpertFfnW2 => {
                let rows = g.input("activated", Float, &width);
                let counts = g.input("counts", Int64, &counts);
                let y = self.expert_w2(g, layer, &rows, &counts);
                g.output(&y, "results", Float, &dispatched);
            }
            Operation::ExpertGather => {
                let results = g.input("results", Float, &dispatched);
                let order = g.input("order", Int64, &[CHOICES]);
                let weights = g.input("weights", Float, &[TOKENS, Dim::Fixed(2)]);
                let x = g.input("residual", Float, &hidden);
                let y = self.expert_gather(g, &results, &order, &weights, &x);
                g.output(&y, "hidden", Float, &hidden);
            }
            Operation::FinalLayernorm => {
                let x = g.input("hidden", Float, &hidden);
                let y = self.final_layer_norm(g, &x);
                g.output(&y, "normed", Float, &hidden);
            }
            Operation::LmHead => {
                let x = g.input("normed", Float, &hidden);
                let y = self.lm_head(g, &x);
                g.output(&y, "logits", Float, &[TOKENS, Dim::Fixed(self.config.vocab_size)]);
            }
        }
    }

    fn build_qkv(&mut self, g: &mut Graph, layer: u16) {
        let x = g.input("normed", Float, &[TOKENS, Dim::Fixed(self.config.hidden_size)]);
        let qkv = self.attention_qkv(g, layer, &x);
        g.output(&qkv.q, "q", Float, &[TOKENS, Dim::Fixed(self.config.q_dim())]);
        g.output(&qkv.k, "k", Float, &[TOKENS, Dim::Fixed(self.config.kv_dim())]);
        g.output(&qkv.v, "v", Float, &[TOKENS, Dim::Fixed(self.config.kv_dim())]);
    }

    fn build_attention(&mut self, g: &mut Graph) {
        let q_dims = [TOKENS, Dim::Fixed(self.config.q_dim())];
        let kv_dims = [TOKENS, Dim::Fixed(self.config.kv_dim())];
        let qkv = Qkv {
            q: g.input("q", Float, &q_dims),
            k: g.input("k", Float, &kv_dims),
            v: g.input("v", Float, &kv_dims),
        };
        let past = Cache {
            keys: g.input("past.key", Float, &self.cache_dims(PAST)),
            values: g.input("past.value", Float, &self.cache_dims(PAST)),
        };
        let (mask, positions) = position_inputs(g);
        let positions = self.positions(g, &positions, &mask);
        let (mixed, present) = self.attention_compute(g, &qkv, &past, &positions);
        g.output(&mixed, "mixed", Float, &q_dims);
        g.output(&present.keys, "present.key", Float, &self.cache_dims(TOTAL));
        g.output(&present.values, "present.value", Float, &self.cache_dims(TOTAL));
    }
}

fn is_of_layer(operation: Operation) -> bool {
    !matches!(operation, Operation::Embedding | Operation::FinalLayernorm | Operation::LmHead)
}
