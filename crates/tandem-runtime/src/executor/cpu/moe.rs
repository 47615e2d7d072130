//! `x += MoE(LN2(x))`: tokens are grouped by expert, so that each expert's weights are read once, and the projections
//! of all experts are computed in one go.

use tandem_cpu::ops::{self, Precision, Product, Weights};
use tandem_memory::PackedType;
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::router::sparsemixer;

use crate::executor::input::Activated;
use crate::executor::pass::Pass;
use crate::model::LayerWeights;
use crate::profile::Operation;

impl Pass<'_> {
    pub(super) fn moe_layernorm(&mut self, layer: usize) {
        let layer = self.model.layer(layer);
        let acts = &mut *self.activations;
        let norm = layer.norm(L::FfnNormWeight, L::FfnNormBias);
        self.input.norm(self.cpu, norm, &acts.x, &mut acts.normed, &gate_and_up(layer));
        self.profile.lap(Operation::MoeLayernorm);
    }

    /// The router is kept in f32 and chooses from exact activations. Sums in f32 are added up in another order where there
    /// are several tokens; so each sequence has a product of its own, lest others tip a choice that is close.
    pub(super) fn router_logits(&mut self, layer: usize) {
        let router = self.model.layer(layer).matrix(L::RouterWeight);
        let acts = &mut *self.activations;
        let mut logits = &mut acts.router[..];
        let mut products = Vec::with_capacity(self.batch.parts.len());
        for part in &self.batch.parts {
            let input = ops::Input::exact(&acts.normed[part.rows(router.cols())]);
            let out = logits.split_off_mut(..part.len() * router.rows()).unwrap_or_default();
            products.push(Product::new(router, None, input, out));
        }
        ops::matmul_all(self.cpu, &mut products);
        // However many products: the weights come from memory once.
        let multiplications: usize = products.iter().map(Product::multiplications).sum();
        self.profile.lap_with(Operation::RouterLogits, router.n_bytes(), 2 * multiplications);
    }

    pub(super) fn expert_selection(&mut self, layer: usize) {
        let config = self.model.config();
        let acts = &mut *self.activations;
        let logits = acts.router.chunks_exact(config.n_experts);
        let choices = acts.choices(layer);
        let chosen = acts.chosen[choices].as_chunks_mut::<EXPERTS_PER_TOKEN>().0.iter_mut();
        let weights = acts.chosen_weights.as_chunks_mut::<EXPERTS_PER_TOKEN>().0.iter_mut();
        for ((logits, chosen), weights) in logits.zip(chosen).zip(weights) {
            let routing = sparsemixer(logits, config.router_jitter);
            *chosen = routing.experts.map(|expert| expert as u32);
            *weights = routing.weights;
        }
        self.profile.lap(Operation::ExpertSelection);
        self.record_choices(layer);
    }

    /// Tells whoever listens what the router decided.
    pub(in crate::executor) fn record_choices(&mut self, layer: usize) {
        let acts = &*self.activations;
        if let Some(trace) = self.trace.as_deref_mut() {
            let chosen = &acts.chosen[acts.choices(layer)];
            trace.record(layer, &acts.router, chosen, &acts.chosen_weights);
        }
    }

    pub(super) fn expert_dispatch(&mut self, layer: usize) {
        let acts = &mut *self.activations;
        acts.uses.fill(&acts.chosen[acts.choices(layer)], &acts.chosen_weights);
        self.profile.lap(Operation::ExpertDispatch);
    }

    pub(super) fn expert_ffn_w1(&mut self, layer: usize) {
        let config = self.model.config();
        let layer = self.model.layer(layer);
        let acts = &mut *self.activations;
        let normed = (Activated::Normed, &acts.normed[..]);
        let input = self.input.of(self.cpu, normed, &gate_and_up(layer), Precision::Bits8);
        let (mut gates, mut ups) = (&mut acts.gate[..], &mut acts.up[..]);
        let mut products = Vec::with_capacity(2 * config.n_experts);
        for (expert, range) in acts.uses.experts() {
            let numbers = range.len() * config.expert_width;
            let input = input.select(&acts.uses.tokens[range]);
            for (rest, matrix) in
                [(&mut gates, L::ExpertGate(expert)), (&mut ups, L::ExpertUp(expert))]
            {
                let out = rest.split_off_mut(..numbers).unwrap_or_default();
                products.push(Product::new(layer.matrix(matrix), None, input, out));
            }
        }
        ops::matmul_all(self.cpu, &mut products);
        self.profile.products(Operation::ExpertFfnW1, &products);
    }

    pub(super) fn expert_ffn_activation(&mut self, layer: usize) {
        let acts = &mut *self.activations;
        let down = self.model.layer(layer).matrix(L::ExpertDown(0));
        let width = self.model.config().expert_width;
        self.input.gate(self.cpu, (&mut acts.gate, &acts.up), width, (down, down_precision(down)));
        self.profile.lap(Operation::ExpertFfnActivation);
    }

    pub(super) fn expert_ffn_w2(&mut self, layer: usize) {
        let config = self.model.config();
        let layer = self.model.layer(layer);
        let acts = &mut *self.activations;
        let first = layer.matrix(L::ExpertDown(0));
        let gated = (Activated::Gated, &acts.gate[..]);
        let input = self.input.of(self.cpu, gated, &[first], down_precision(first));
        let mut downs = &mut acts.down[..];
        let mut products = Vec::with_capacity(config.n_experts);
        for (expert, range) in acts.uses.experts() {
            let numbers = range.len() * config.hidden_size;
            let out = downs.split_off_mut(..numbers).unwrap_or_default();
            let input = input.select(&acts.uses.numbers[range]);
            products.push(Product::new(layer.matrix(L::ExpertDown(expert)), None, input, out));
        }
        ops::matmul_all(self.cpu, &mut products);
        self.profile.products(Operation::ExpertFfnW2, &products);
    }

    pub(super) fn expert_gather(&mut self) {
        let acts = &mut *self.activations;
        let width = self.model.config().hidden_size;
        let places = acts.uses.places.as_chunks::<EXPERTS_PER_TOKEN>().0;
        let weights = &acts.uses.weights;
        ops::add_weighted_rows(self.cpu, &mut acts.x, &acts.down, width, places, weights);
        self.profile.lap(Operation::ExpertGather);
    }
}

/// The first expert's matrices that activations go into: a file has all experts of a layer in one encoding.
fn gate_and_up(layer: LayerWeights<'_>) -> [Weights<'_>; 2] {
    [layer.matrix(L::ExpertGate(0)), layer.matrix(L::ExpertUp(0))]
}

/// How exactly what goes into an expert's down projection is quantized: products of two activations, with outliers that
/// leave few of 8 bits for their neighbours. Of all inputs this one changes most of the routers' later choices when it is
/// rounded to 8 bits. Weights of 4 bits are rounded so much more coarsely that it makes no difference to them.
pub(in crate::executor) fn down_precision(weights: Weights<'_>) -> Precision {
    match weights {
        Weights::Packed(matrix) if matrix.layout().kind() == PackedType::Q4_0 => Precision::Bits8,
        _ => Precision::Bits16,
    }
}
