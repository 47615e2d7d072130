//! What comes before the layers, and after them.

use tandem_cpu::ops::{self, LayerNorm, Precision, Product};
use tandem_model::TensorId;

use super::Activated;
use crate::executor::pass::Pass;
use crate::profile::Operation;

impl Pass<'_> {
    pub(super) fn embedding(&mut self) {
        let embedding = self.model.matrix(TensorId::TokenEmbedding);
        let rows = self.activations.x.chunks_exact_mut(embedding.cols());
        for (x, &id) in rows.zip(self.batch.ids) {
            embedding.decode_row(id as usize, x);
        }
        self.profile.lap(Operation::Embedding);
    }

    /// Of the tokens whose logits are wanted; they come first in `normed` then.
    pub(super) fn final_layernorm(&mut self) {
        let norm = LayerNorm {
            weight: self.model.vector(TensorId::OutputNormWeight),
            bias: self.model.vector(TensorId::OutputNormBias),
            eps: self.model.config().layer_norm_eps,
        };
        let lm_head = [self.model.matrix(TensorId::LmHeadWeight)];
        let numbers = self.wanted_numbers();
        let acts = &mut *self.activations;
        let normed = &mut acts.normed[..numbers.len()];
        self.input.norm(self.cpu, norm, &acts.x[numbers], normed, &lm_head);
        self.profile.lap(Operation::FinalLayernorm);
    }

    pub(super) fn lm_head(&mut self) {
        let lm_head = self.model.matrix(TensorId::LmHeadWeight);
        let bias = Some(self.model.vector(TensorId::LmHeadBias));
        let count = self.wanted_numbers().len();
        let acts = &mut *self.activations;
        let normed = (Activated::Normed, &acts.normed[..count]);
        let input = self.input.of(self.cpu, normed, &[lm_head], Precision::Bits8);
        let product = Product::new(lm_head, bias, input, &mut acts.logits);
        let mut product = [Product { largest: self.largest, ..product }];
        ops::matmul_all(self.cpu, &mut product);
        self.profile.products(Operation::LmHead, &product);
    }

    /// Which numbers of the residual stream are those of the tokens whose logits are wanted.
    pub(in crate::executor) fn wanted_numbers(&self) -> std::ops::Range<usize> {
        let (wanted, width) = (&self.batch.wanted, self.model.config().hidden_size);
        wanted.start * width..wanted.end * width
    }
}
