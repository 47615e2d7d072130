//! Each operation, enqueued.

use tandem_gpu::ops::{self, KvRegion, Output, Table, layer_norm};
use tandem_gpu::{Region, RegionMut, Result, Scope};
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::{PhimoeConfig, TensorId};

use super::heads;
use super::lent::Lent;
use super::products::Products;
use super::weights::{Expert, Matrix, of_layer};
use crate::executor::activations::ANGLE;
use crate::executor::batch::Batch;
use crate::executor::cpu::Activated;
use crate::plan::Step;
use crate::profile::Operation as Op;

/// Enqueues steps in one scope.
pub(super) struct Enqueue<'a, 'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    config: &'a PhimoeConfig,
    products: Products<'scope, 'env>,
    lent: Lent<'scope>,
    batch: &'a Batch,
}

impl<'a, 'scope, 'env> Enqueue<'a, 'scope, 'env> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        config: &'a PhimoeConfig,
        products: Products<'scope, 'env>,
        lent: Lent<'scope>,
        batch: &'a Batch,
    ) -> Self {
        Self { scope, config, products, lent, batch }
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
        let table = self.products.weights.matrix(self.scope, TensorId::TokenEmbedding)?;
        let table = match &table {
            Matrix::Packed(weights) => Table::Packed(weights),
            Matrix::Rows(weights) => Table::Rows(weights),
        };
        ops::embedding(self.scope, &table, &self.lent.ids, &self.lent.x)
    }

    fn norm(&mut self, layer: usize, weight: L, bias: L) -> Result<()> {
        let [weight, bias] = [weight, bias].map(|id| self.vector(layer, id));
        self.products.clear();
        let (x, eps, out) = (&self.lent.x, self.config.layer_norm_eps, &self.lent.normed);
        layer_norm(self.scope, x, &weight, &bias, eps, out)
    }

    fn attention_qkv_proj(&mut self, layer: usize) -> Result<()> {
        for (weight, bias, out) in [
            (L::QWeight, L::QBias, &self.lent.q),
            (L::KWeight, L::KBias, &self.lent.k),
            (L::VWeight, L::VBias, &self.lent.v),
        ] {
            let normed = (Activated::Normed, &*self.lent.normed);
            let weights = (of_layer(layer, weight), Some(of_layer(layer, bias)));
            self.products.dense(weights, normed, Output::Replace, out)?;
        }
        Ok(())
    }

    fn attention_compute(&mut self, layer: usize) -> Result<()> {
        let (scope, lent, config) = (self.scope, &self.lent, self.config);
        for (part, cache) in self.batch.parts.iter().zip(&lent.caches) {
            let (queries, keys) = (part.rows(config.q_dim()), part.rows(config.kv_dim()));
            let [q, mixed] = [&lent.q, &lent.mixed].map(|all| all.slice_mut(queries.clone()));
            let [k, v] = [&lent.k, &lent.v].map(|all| all.slice_mut(keys.clone()));
            let angles = lent.angles.slice(part.rows(ANGLE * config.head_dim / 2));
            let kv = KvRegion::new(scope, heads(config), cache, layer)?;
            kv.rope_and_write(scope, &angles, &q, &k, &v, part.start)?;
            kv.attention(scope, &q, part.start, config.sliding_window, &lent.spans, &mixed)?;
        }
        Ok(())
    }

    fn attention_output_proj(&mut self, layer: usize) -> Result<()> {
        let mixed = (Activated::Mixed, &*self.lent.mixed);
        let weights = (of_layer(layer, L::OWeight), Some(of_layer(layer, L::OBias)));
        self.products.dense(weights, mixed, Output::Add, &self.lent.x)
    }

    fn router_logits(&mut self, layer: usize) -> Result<()> {
        let normed = (Activated::Normed, &*self.lent.normed);
        let weights = (of_layer(layer, L::RouterWeight), None);
        self.products.dense(weights, normed, Output::Replace, &self.lent.router)
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
        let lent = &self.lent;
        let normed = (Activated::Normed, &*lent.normed);
        for (matrix, out) in [(Expert::Gate, &lent.gate), (Expert::Up, &lent.up)] {
            self.products.experts((layer, matrix), &lent.uses, normed, out)?;
        }
        Ok(())
    }

    fn expert_ffn_activation(&mut self) -> Result<()> {
        self.products.clear();
        ops::silu_mul(self.scope, &self.lent.gate, &self.lent.up)
    }

    fn expert_ffn_w2(&mut self, layer: usize) -> Result<()> {
        let lent = &self.lent;
        let gated = (Activated::Gated, &*lent.gate);
        self.products.experts((layer, Expert::Down), &lent.uses, gated, &lent.down)
    }

    fn expert_gather(&self) -> Result<()> {
        let lent = &self.lent;
        lent.uses.gather(self.scope, &lent.down, self.config.hidden_size, &lent.x)
    }

    fn final_layernorm(&mut self) -> Result<()> {
        self.products.clear();
        let [weight, bias] = [TensorId::OutputNormWeight, TensorId::OutputNormBias]
            .map(|id| self.products.weights.vector(id));
        let (lent, eps) = (&self.lent, self.config.layer_norm_eps);
        let mut end = 0;
        for rows in self.batch.wanted_rows(self.config.hidden_size) {
            let out = lent.normed.slice_mut(end..end + rows.len());
            end += rows.len();
            layer_norm(self.scope, &lent.x.slice(rows), &weight, &bias, eps, &out)?;
        }
        Ok(())
    }

    fn lm_head(&mut self) -> Result<()> {
        let (Some(logits), Some(best)) = (self.lent.logits.clone(), self.lent.best.clone()) else {
            return Ok(());
        };
        let normed = self.wanted_normed();
        let weights = (TensorId::LmHeadWeight, Some(TensorId::LmHeadBias));
        self.products.dense(weights, (Activated::Normed, &normed), Output::Replace, &logits)?;
        ops::argmax(self.scope, &logits, self.config.vocab_size, &best)
    }

    /// What the last LayerNorm made of the tokens whose logits are wanted.
    fn wanted_normed(&self) -> RegionMut<'scope, f32> {
        let count = self.batch.n_wanted() * self.config.hidden_size;
        self.lent.normed.slice_mut(0..count)
    }

    fn vector(&self, layer: usize, tensor: L) -> Region<'scope, f32> {
        self.products.weights.vector(of_layer(layer, tensor))
    }
}
