//! What steps cost on a GPU.

use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::of_layer;
use crate::executor::batch::Batch;
use crate::model::Model;
use crate::plan::Step;
use crate::profile::Operation as Op;
use tandem_model::TensorId;

/// Bytes of weights, keys and values that a step reads, and its arithmetic. Of experts those are read that are `used`; where
/// that is not known, since the choice itself is the GPU's, as many as the tokens can choose at most: with one token it
/// is no less.
pub(in crate::executor) fn cost(
    model: &Model,
    batch: &Batch,
    step: Step,
    used: Option<usize>,
) -> (usize, usize) {
    let config = model.config();
    let layer = usize::from(step.layer.unwrap_or_default());
    let tokens = batch.ids.len();
    let dense = |ids: &[TensorId], tokens: usize| {
        let matrices = ids.iter().map(|&id| model.matrix(id));
        matrices.fold((0, 0), |(bytes, arithmetic), matrix| {
            let products = 2 * matrix.rows() * matrix.cols() * tokens;
            (bytes + matrix.n_bytes(), arithmetic + products)
        })
    };
    let uses = EXPERTS_PER_TOKEN * tokens;
    let experts = |tensors: &[L]| {
        let ids: Vec<_> = tensors.iter().map(|&tensor| of_layer(layer, tensor)).collect();
        let (bytes, arithmetic) = dense(&ids, 1);
        (bytes * used.unwrap_or(uses.min(config.n_experts)), arithmetic * uses)
    };
    let of_layer = |tensors: &[L]| {
        let ids: Vec<_> = tensors.iter().map(|&tensor| of_layer(layer, tensor)).collect();
        dense(&ids, tokens)
    };
    match step.operation {
        Op::AttentionQkvProj => of_layer(&[L::QWeight, L::KWeight, L::VWeight]),
        Op::AttentionCompute => batch.attention_cost(config),
        Op::AttentionOutputProj => of_layer(&[L::OWeight]),
        Op::RouterLogits => of_layer(&[L::RouterWeight]),
        Op::ExpertFfnW1 => experts(&[L::ExpertGate(0), L::ExpertUp(0)]),
        Op::ExpertFfnW2 => experts(&[L::ExpertDown(0)]),
        Op::LmHead => dense(&[TensorId::LmHeadWeight], batch.n_wanted()),
        Op::Embedding => (tokens * model.matrix(TensorId::TokenEmbedding).row_bytes(), 0),
        _ => (0, 0),
    }
}
