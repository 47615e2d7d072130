//! Each operation, enqueued.

use tandem_gpu::ops::{
    self, ExpertInput, KvRegion, Output, Precision, Quantized, Table, layer_norm,
};
use tandem_gpu::{Region, RegionMut, Result, Scope};
use tandem_memory::PackedType;
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::{PhimoeConfig, TensorId};

use super::heads;
use super::lent::Lent;
use super::weights::{Expert, Experts, LentWeights, Matrix, layer_number};
use crate::executor::cpu::Activated;
use crate::executor::pass::Batch;
use crate::plan::Step;
use crate::profile::Operation as Op;

/// Enqueues steps in one scope.
pub(super) struct Enqueue<'a, 'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    config: &'a PhimoeConfig,
    weights: LentWeights<'scope>,
    lent: Lent<'scope>,
    batch: &'a Batch<'a>,
    /// Which activations are in 8 bits.
    quantized: Option<Activated>,
}

impl<'a, 'scope, 'env> Enqueue<'a, 'scope, 'env> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        config: &'a PhimoeConfig,
        weights: LentWeights<'scope>,
        lent: Lent<'scope>,
        batch: &'a Batch<'a>,
    ) -> Self {
        Self { scope, config, weights, lent, batch, quantized: None }
    }

    /// Enqueues one step.
    pub(super) fn step(&mut self, step: Step) -> Result<()> {
        let layer = usize::from(step.layer.unwrap_or_default());
        match step.operation {
            Op::Embedding => self.embedding(),
            Op::AttentionLayernorm => self.norm(layer, L::AttnNormWeight, L::AttnNormBias),
            Op::AttentionQkvProj => self.attention_qkv_proj(layer),
            Op::AttentionCompute => self.attention_compute(layer),
            Op::AttentionOutputProj => self.attention_output_proj(layer),
            Op::MoeLayernorm => self.norm(layer, L::FfnNormWeight, L::FfnNormBias),
            Op::RouterLogits => self.router_logits(layer),
            Op::ExpertSelection => self.expert_selection(),
            Op::ExpertDispatch => self.expert_dispatch(),
            Op::ExpertFfnW1 => self.expert_ffn_w1(layer),
            Op::ExpertFfnActivation => self.expert_ffn_activation(),
            Op::ExpertFfnW2 => self.expert_ffn_w2(layer),
            Op::ExpertGather => self.expert_gather(),
            Op::FinalLayernorm => self.final_layernorm(),
            Op::LmHead => self.lm_head(),
        }
    }

    fn embedding(&self) -> Result<()> {
        let table = self.weights.matrix(self.scope, TensorId::TokenEmbedding)?;
        let table = match &table {
            Matrix::Packed(weights) => Table::Packed(weights),
            Matrix::Rows(weights) => Table::Rows(weights),
        };
        ops::embedding(self.scope, &table, &self.lent.ids, &self.lent.x)
    }

    fn norm(&mut self, layer: usize, weight: L, bias: L) -> Result<()> {
        let [weight, bias] = [weight, bias].map(|id| self.vector(layer, id));
        self.quantized = None;
        let (x, eps, out) = (&self.lent.x, self.config.layer_norm_eps, &self.lent.normed);
        layer_norm(self.scope, x, &weight, &bias, eps, out)
    }

    fn attention_qkv_proj(&mut self, layer: usize) -> Result<()> {
        for (weight, bias, out) in [
            (L::QWeight, L::QBias, self.lent.q.clone()),
            (L::KWeight, L::KBias, self.lent.k.clone()),
            (L::VWeight, L::VBias, self.lent.v.clone()),
        ] {
            let normed = (Activated::Normed, self.lent.normed.clone());
            let bias = Some(self.vector(layer, bias));
            let weight = TensorId::Layer(layer_number(layer), weight);
            self.product(weight, bias, normed, Output::Replace, &out)?;
        }
        Ok(())
    }

    fn attention_compute(&mut self, layer: usize) -> Result<()> {
        let (scope, lent, start) = (self.scope, &self.lent, self.batch.start);
        let [keys, values] = lent.kv.layer(layer);
        let kv = KvRegion::new(scope, heads(self.config), lent.kv.kind, keys, values)?;
        kv.rope_and_write(scope, &lent.angles, &lent.q, &lent.k, &lent.v, start)?;
        let window = self.config.sliding_window;
        kv.attention(scope, &lent.q, start, window, &lent.spans, &lent.mixed)
    }

    fn attention_output_proj(&mut self, layer: usize) -> Result<()> {
        let (mixed, x) = ((Activated::Mixed, self.lent.mixed.clone()), self.lent.x.clone());
        let bias = Some(self.vector(layer, L::OBias));
        let weight = TensorId::Layer(layer_number(layer), L::OWeight);
        self.product(weight, bias, mixed, Output::Add, &x)
    }

    fn router_logits(&mut self, layer: usize) -> Result<()> {
        let (normed, out) =
            ((Activated::Normed, self.lent.normed.clone()), self.lent.router.clone());
        let weight = TensorId::Layer(layer_number(layer), L::RouterWeight);
        self.product(weight, None, normed, Output::Replace, &out)
    }

    fn expert_selection(&self) -> Result<()> {
        let (lent, config) = (&self.lent, self.config);
        let (n_experts, jitter) = (config.n_experts, config.router_jitter);
        let (chosen, weights) = (&lent.chosen, &lent.chosen_weights);
        ops::sparsemixer(self.scope, &lent.router, n_experts, jitter, chosen, weights)
    }

    fn expert_dispatch(&self) -> Result<()> {
        let lent = &self.lent;
        lent.uses.group(self.scope, &lent.chosen, &lent.chosen_weights)
    }

    fn expert_ffn_w1(&mut self, layer: usize) -> Result<()> {
        for (matrix, out) in
            [(Expert::Gate, self.lent.gate.clone()), (Expert::Up, self.lent.up.clone())]
        {
            let normed = (Activated::Normed, self.lent.normed.clone());
            self.experts(layer, matrix, normed, &out)?;
        }
        Ok(())
    }

    fn expert_ffn_activation(&mut self) -> Result<()> {
        self.quantized = None;
        ops::silu_mul(self.scope, &self.lent.gate, &self.lent.up)
    }

    fn expert_ffn_w2(&mut self, layer: usize) -> Result<()> {
        let (gated, out) = ((Activated::Gated, self.lent.gate.clone()), self.lent.down.clone());
        self.experts(layer, Expert::Down, gated, &out)
    }

    fn expert_gather(&self) -> Result<()> {
        let lent = &self.lent;
        lent.uses.gather(self.scope, &lent.down, self.config.hidden_size, &lent.x)
    }

    fn final_layernorm(&mut self) -> Result<()> {
        self.quantized = None;
        let [weight, bias] = [TensorId::OutputNormWeight, TensorId::OutputNormBias]
            .map(|id| self.weights.vector(id));
        let (wanted, width) = (&self.batch.wanted, self.config.hidden_size);
        let x = self.lent.x.slice(wanted.start * width..wanted.end * width);
        let eps = self.config.layer_norm_eps;
        layer_norm(self.scope, &x, &weight, &bias, eps, &self.wanted_normed())
    }

    fn lm_head(&mut self) -> Result<()> {
        let (Some(logits), Some(best)) = (self.lent.logits.clone(), self.lent.best.clone()) else {
            return Ok(());
        };
        let bias = Some(self.weights.vector(TensorId::LmHeadBias));
        let normed = (Activated::Normed, self.wanted_normed());
        self.product(TensorId::LmHeadWeight, bias, normed, Output::Replace, &logits)?;
        ops::argmax(self.scope, &logits, self.config.vocab_size, &best)
    }

    /// What the last LayerNorm made of the tokens whose logits are wanted.
    fn wanted_normed(&self) -> RegionMut<'scope, f32> {
        let count = self.batch.wanted.len() * self.config.hidden_size;
        self.lent.normed.slice_mut(0..count)
    }

    fn vector(&self, layer: usize, tensor: L) -> Region<'scope, f32> {
        self.weights.vector(TensorId::Layer(layer_number(layer), tensor))
    }

    /// A product with a matrix.
    fn product(
        &mut self,
        weights: TensorId,
        bias: Option<Region<'scope, f32>>,
        x: (Activated, RegionMut<'scope, f32>),
        output: Output,
        out: &RegionMut<'scope, f32>,
    ) -> Result<()> {
        match self.weights.matrix(self.scope, weights)? {
            Matrix::Packed(weights) => {
                let x = self.in_8_bits(x, weights.cols(), Precision::Bits8)?;
                ops::matmul(self.scope, &weights, bias.as_ref(), &x, output, out)
            }
            Matrix::Rows(weights) => {
                ops::matmul_rows(self.scope, &weights, bias.as_ref(), &x.1, output, out)
            }
        }
    }

    /// A product with a matrix of each expert.
    fn experts(
        &mut self,
        layer: usize,
        matrix: Expert,
        x: (Activated, RegionMut<'scope, f32>),
        out: &RegionMut<'scope, f32>,
    ) -> Result<()> {
        let gated = x.0 == Activated::Gated;
        let input = if gated { ExpertInput::OfUses } else { ExpertInput::OfTokens };
        match self.weights.experts(self.scope, layer, matrix)? {
            Experts::Packed(weights) => {
                let fine = gated && weights.kind() == PackedType::Q8_0;
                let precision = if fine { Precision::Bits16 } else { Precision::Bits8 };
                let x = self.in_8_bits(x, weights.cols(), precision)?;
                ops::matmul_experts(self.scope, &weights, &self.lent.uses, &x, input, out)
            }
            Experts::Rows(weights) => {
                ops::matmul_experts_rows(self.scope, &weights, &self.lent.uses, &x.1, input, out)
            }
        }
    }

    /// Activations as packed weights take them: quantized once for all products they go into.
    fn in_8_bits(
        &mut self,
        (what, x): (Activated, RegionMut<'scope, f32>),
        cols: usize,
        precision: Precision,
    ) -> Result<Quantized<'scope>> {
        if self.quantized != Some(what) {
            self.quantized = Some(what);
            self.lent.quantized = self.lent.quantized.refill(self.scope, &x, cols, precision)?;
        }
        Ok(self.lent.quantized.clone())
    }
}
