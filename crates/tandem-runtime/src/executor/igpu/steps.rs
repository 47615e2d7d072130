//! Each operation, enqueued.

use tandem_cpu::ops::Weights;
use tandem_gpu::ops::{self, KvRegion, Output, Table};
use tandem_gpu::{Region, RegionMut, Result, Scope};
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::{PhimoeConfig, TensorId};

use super::heads;
use super::lent::Lent;
use super::products::{Plain, Products, down_precision};
use super::weights::{Expert, Matrix, of_layer};
use crate::executor::activations::ANGLE;
use crate::executor::batch::Batch;
use crate::executor::input::{Activated, Left};
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
            Op::AttentionLayernorm => {
                self.norm(layer, L::AttnNormWeight, L::AttnNormBias, L::QWeight)
            }
            Op::AttentionQkvProj => self.attention_qkv_proj(layer),
            Op::AttentionCompute => self.attention_compute(layer),
            Op::AttentionOutputProj => self.attention_output_proj(layer),
            Op::MoeLayernorm => {
                self.norm(layer, L::FfnNormWeight, L::FfnNormBias, L::ExpertGate(0))
            }
            Op::RouterLogits => self.router_logits(layer),
            Op::ExpertSelection => self.expert_selection(layer),
            Op::ExpertDispatch => self.expert_dispatch(layer),
            Op::ExpertFfnW1 => self.expert_ffn_w1(layer),
            Op::ExpertFfnActivation => self.expert_ffn_activation(layer),
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

    fn norm(&mut self, layer: usize, weight: L, bias: L, then: L) -> Result<()> {
        let [weight, bias] = [weight, bias].map(|id| self.vector(layer, id));
        let (x, out) = (self.lent.x.clone(), self.lent.normed.clone());
        self.norm_for(&x, (&weight, &bias), of_layer(layer, then), &out)
    }

    /// LayerNorm, which quantizes on the way where `then`, the weights that the result goes into, are packed.
    fn norm_for(
        &mut self,
        x: &Region<'scope, f32>,
        (weight, bias): (&Region<'scope, f32>, &Region<'scope, f32>),
        then: TensorId,
        out: &RegionMut<'scope, f32>,
    ) -> Result<()> {
        let (scope, eps) = (self.scope, self.config.layer_norm_eps);
        if !self.products.weights.model().matrix(then).is_packed() {
            self.products.clear();
            return ops::layer_norm(scope, x, weight, bias, eps, out);
        }
        self.products.quantized_by(Activated::Normed, |room| {
            ops::layer_norm_quantized(scope, x, weight, bias, eps, (out, room))
        })
    }

    fn attention_qkv_proj(&mut self, layer: usize) -> Result<()> {
        let products = [
            (L::QWeight, L::QBias, &self.lent.q),
            (L::KWeight, L::KBias, &self.lent.k),
            (L::VWeight, L::VBias, &self.lent.v),
        ]
        .map(|(weights, bias, out)| {
            (of_layer(layer, weights), Some(of_layer(layer, bias)), out.clone())
        });
        let normed = Plain::of(Activated::Normed, &self.lent.normed);
        self.products.dense(&products, &normed, Output::Replace)
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
        let mixed = Plain::of(Activated::Mixed, &self.lent.mixed);
        let (weights, bias) = (of_layer(layer, L::OWeight), of_layer(layer, L::OBias));
        self.products.dense(&[(weights, Some(bias), self.lent.x.clone())], &mixed, Output::Add)
    }

    fn router_logits(&mut self, layer: usize) -> Result<()> {
        let normed = Plain::of(Activated::Normed, &self.lent.normed);
        let product = (of_layer(layer, L::RouterWeight), None, self.lent.router.clone());
        self.products.dense(&[product], &normed, Output::Replace)
    }

    fn expert_selection(&self, layer: usize) -> Result<()> {
        let (lent, config) = (&self.lent, self.config);
        let (n_experts, jitter) = (config.n_experts, config.router_jitter);
        let (chosen, weights) = (lent.chosen(layer), &lent.chosen_weights);
        ops::sparsemixer(self.scope, &lent.router, n_experts, jitter, &chosen, weights)
    }

    fn expert_dispatch(&self, layer: usize) -> Result<()> {
        let lent = &self.lent;
        lent.uses.group(self.scope, &lent.chosen(layer), &lent.chosen_weights)
    }

    fn expert_ffn_w1(&mut self, layer: usize) -> Result<()> {
        let lent = &self.lent;
        let normed = Plain::of(Activated::Normed, &lent.normed);
        let products = [(Expert::Gate, lent.gate.clone()), (Expert::Up, lent.up.clone())];
        self.products.experts(layer, &products, &lent.uses, &normed)
    }

    fn expert_ffn_activation(&mut self, layer: usize) -> Result<()> {
        let (scope, gate, up) = (self.scope, &self.lent.gate, &self.lent.up);
        let model = self.products.weights.model();
        let Weights::Packed(down) = model.matrix(of_layer(layer, L::ExpertDown(0))) else {
            self.products.clear();
            return ops::silu_mul(scope, gate, up);
        };
        let (cols, precision) = (self.config.expert_width, down_precision(down.layout().kind()));
        self.products.quantized_by(Activated::Gated, |room| {
            ops::silu_mul_quantized(scope, (gate, up), cols, precision, room)
        })
    }

    fn expert_ffn_w2(&mut self, layer: usize) -> Result<()> {
        let lent = &self.lent;
        let gated = Plain::of(Activated::Gated, &lent.gate);
        self.products.experts(layer, &[(Expert::Down, lent.down.clone())], &lent.uses, &gated)
    }

    fn expert_gather(&self) -> Result<()> {
        let lent = &self.lent;
        lent.uses.gather(self.scope, &lent.down, self.config.hidden_size, &lent.x)
    }

    fn final_layernorm(&mut self) -> Result<()> {
        let [weight, bias] = [TensorId::OutputNormWeight, TensorId::OutputNormBias]
            .map(|id| self.products.weights.vector(id));
        let runs: Vec<_> = self.batch.wanted_rows(self.config.hidden_size).collect();
        if let [rows] = &runs[..] {
            let out = self.lent.normed.slice_mut(0..rows.len());
            let x = self.lent.x.slice(rows.clone());
            return self.norm_for(&x, (&weight, &bias), TensorId::LmHeadWeight, &out);
        }
        self.products.clear();
        let (lent, eps) = (&self.lent, self.config.layer_norm_eps);
        let mut end = 0;
        for rows in runs {
            let out = lent.normed.slice_mut(end..end + rows.len());
            end += rows.len();
            ops::layer_norm(self.scope, &lent.x.slice(rows), &weight, &bias, eps, &out)?;
        }
        Ok(())
    }

    fn lm_head(&mut self) -> Result<()> {
        let (Some(logits), Some(best)) = (self.lent.logits.clone(), self.lent.best.clone()) else {
            return Ok(());
        };
        let normed = Plain::of(Activated::Normed, &self.wanted_normed());
        let (weights, bias) = (TensorId::LmHeadWeight, TensorId::LmHeadBias);
        let product = (weights, Some(bias), logits.clone());
        self.products.dense(&[product], &normed, Output::Replace)?;
        ops::argmax(self.scope, &logits, self.config.vocab_size, &best)
    }

    /// What is in 8 bits at the end.
    pub(super) fn left(&self) -> Option<Left> {
        self.products.left()
    }

    /// Uploads experts that a layer is likely to use.
    pub(super) fn prefetch_experts(&self, layer: usize) -> Result<()> {
        self.products.prefetch_experts(layer, self.batch.ids.len())
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
