//! `x += Attn(LN1(x))`.

use tandem_cpu::ops::{self, Precision, Product, Queries, Sequence};
use tandem_model::catalogue::LayerTensor as L;

use crate::error::Result;
use crate::executor::input::Activated;
use crate::executor::pass::Pass;
use crate::profile::Operation;

impl Pass<'_> {
    pub(super) fn attention_layernorm(&mut self, layer: usize) {
        let layer = self.model.layer(layer);
        let norm = layer.norm(L::AttnNormWeight, L::AttnNormBias);
        let acts = &mut *self.activations;
        self.input.norm(self.cpu, norm, &acts.x, &mut acts.normed, &layer.qkv());
        self.profile.lap(Operation::AttentionLayernorm);
    }

    pub(super) fn attention_qkv_proj(&mut self, layer: usize) {
        let layer = self.model.layer(layer);
        let acts = &mut *self.activations;
        let [wq, wk, wv] = layer.qkv();
        let normed = (Activated::Normed, &acts.normed[..]);
        let input = self.input.of(self.cpu, normed, &[wq, wk, wv], Precision::Bits8);
        let project =
            |weights, bias, out| Product::new(weights, Some(layer.vector(bias)), input, out);
        let mut products = [
            project(wq, L::QBias, &mut acts.q[..]),
            project(wk, L::KBias, &mut acts.k[..]),
            project(wv, L::VBias, &mut acts.v[..]),
        ];
        ops::matmul_all(self.cpu, &mut products);
        self.profile.products(Operation::AttentionQkvProj, &products);
    }

    pub(super) fn attention_compute(&mut self, layer: usize) -> Result<()> {
        let config = self.model.config();
        let acts = &mut *self.activations;
        let mut mixed = &mut acts.mixed[..];
        let mut sequences = Vec::with_capacity(self.batch.parts.len());
        for (part, kv) in self.batch.parts.iter().zip(&mut *self.caches) {
            let (start, rows) = (part.start, part.rows(config.kv_dim()));
            let (k, v) = (&acts.k[rows.clone()], &acts.v[rows]);
            ops::store_kv(self.cpu, kv, layer, start, (k, v), self.rope)?;
            let q = &acts.q[part.rows(config.q_dim())];
            let queries = Queries { q, heads: config.n_heads, start, rope: Some(self.rope) };
            let out = mixed.split_off_mut(..q.len()).unwrap_or_default();
            sequences.push(Sequence { queries, kv: kv.layer(layer), out });
        }
        ops::attention_all(self.cpu, &mut sequences, config.sliding_window);
        let (bytes, arithmetic) = self.batch.attention_cost(config);
        self.profile.lap_with(Operation::AttentionCompute, bytes, arithmetic);
        Ok(())
    }

    pub(super) fn attention_output_proj(&mut self, layer: usize) {
        let layer = self.model.layer(layer);
        let acts = &mut *self.activations;
        let (wo, bias) = (layer.matrix(L::OWeight), Some(layer.vector(L::OBias)));
        let mixed = (Activated::Mixed, &acts.mixed[..]);
        let input = self.input.of(self.cpu, mixed, &[wo], Precision::Bits8);
        let product = Product { accumulate: true, ..Product::new(wo, bias, input, &mut acts.x) };
        let mut product = [product];
        ops::matmul_all(self.cpu, &mut product);
        self.profile.products(Operation::AttentionOutputProj, &product);
    }
}
