//! What comes before the layers, and after them.

use tandem_cpu::ops::{self, Largest, LayerNorm, Precision, Product};
use tandem_model::TensorId;

use crate::executor::input::Activated;
use crate::executor::pass::Pass;
use crate::profile::Operation;

/// Logits that a thread looks through at a time: a microsecond.
const OFFERED: usize = 2048;

impl Pass<'_> {
    pub(super) fn embedding(&mut self) {
        let embedding = self.model.matrix(TensorId::TokenEmbedding);
        let rows = self.activations.x.chunks_exact_mut(embedding.cols());
        for (x, &id) in rows.zip(&self.batch.ids) {
            embedding.decode_row(id as usize, x);
        }
        let bytes = self.batch.ids.len() * embedding.row_bytes();
        self.profile.lap_with(Operation::Embedding, bytes, 0);
    }

    /// Of the tokens whose logits are wanted; they come first in `normed` then, and in the residual stream, which nobody
    /// needs any more.
    pub(super) fn final_layernorm(&mut self) {
        let norm = LayerNorm {
            weight: self.model.vector(TensorId::OutputNormWeight),
            bias: self.model.vector(TensorId::OutputNormBias),
            eps: self.model.config().layer_norm_eps,
        };
        let lm_head = [self.model.matrix(TensorId::LmHeadWeight)];
        let count = self.wanted_numbers();
        let acts = &mut *self.activations;
        let mut end = 0;
        for rows in self.batch.wanted_rows(self.model.config().hidden_size) {
            let count = rows.len();
            acts.x.copy_within(rows, end);
            end += count;
        }
        self.input.norm(self.cpu, norm, &acts.x[..count], &mut acts.normed[..count], &lm_head);
        self.profile.lap(Operation::FinalLayernorm);
    }

    pub(super) fn lm_head(&mut self) {
        let lm_head = self.model.matrix(TensorId::LmHeadWeight);
        let bias = Some(self.model.vector(TensorId::LmHeadBias));
        let count = self.wanted_numbers();
        let acts = &mut *self.activations;
        let normed = (Activated::Normed, &acts.normed[..count]);
        let input = self.input.of(self.cpu, normed, &[lm_head], Precision::Bits8);
        let product = Product::new(lm_head, bias, input, &mut acts.logits);
        let mut product = [Product { largest: self.largest, ..product }];
        ops::matmul_all(self.cpu, &mut product);
        self.profile.products(Operation::LmHead, &product);
    }

    /// Hands the logits that the GPU has computed to whoever looks for the largest.
    pub(in crate::executor) fn offer_best(&self) {
        let vocab_size = self.model.config().vocab_size;
        let acts = &*self.activations;
        let rows = acts.logits.chunks_exact(vocab_size).zip(&acts.best[..]);
        for (largest, (logits, &best)) in self.largest.iter().zip(rows) {
            if !largest.offer_best(best, logits[best as usize]) {
                self.offer(largest, logits);
            }
        }
    }

    /// Hands the first logits of each token, which the GPU has computed, to whoever looks for the largest.
    pub(in crate::executor) fn offer_first(&self, count: usize) {
        let logits = self.activations.logits.chunks_exact(self.model.config().vocab_size);
        for (largest, logits) in self.largest.iter().zip(logits) {
            self.offer(largest, &logits[..count]);
        }
    }

    fn offer(&self, largest: &Largest<'_>, logits: &[f32]) {
        self.cpu.team().for_each_chunk(logits.len(), OFFERED, &|chunk| {
            largest.offer(chunk.start, &logits[chunk.clone()]);
        });
    }

    /// How many numbers of the residual stream are those of the tokens whose logits are wanted.
    pub(in crate::executor) fn wanted_numbers(&self) -> usize {
        self.batch.n_wanted() * self.model.config().hidden_size
    }
}
