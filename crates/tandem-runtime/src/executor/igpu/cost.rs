//! What steps cost on a GPU.

use tandem_memory::KvCache;
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::of_layer;
use crate::executor::batch::Batch;
use crate::model::Model;
use crate::plan::Step;
use crate::profile::Operation as Op;
use tandem_model::TensorId;

/// Bytes of matrices, keys and values that a step reads, and its arithmetic. Of experts as many are read as the tokens
/// can choose at most: the choice itself may be the GPU's, and with one token it is no less. `kv` is any of the caches.
pub(in crate::executor) fn cost(
    model: &Model,
    batch: &Batch,
    kv: &KvCache,
    step: Step,
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
        (bytes * uses.min(config.n_experts), arithmetic * uses)
    };
    let of_layer = |tensors: &[L]| {
        let ids: Vec<_> = tensors.iter().map(|&tensor| of_layer(layer, tensor)).collect();
        dense(&ids, tokens)
    };
    match step.operation {
        Op::AttentionQkvProj => of_layer(&[L::QWeight, L::KWeight, L::VWeight]),
        Op::AttentionCompute => batch.attention_cost(config, kv),
        Op::AttentionOutputProj => of_layer(&[L::OWeight]),
        Op::RouterLogits => of_layer(&[L::RouterWeight]),
        Op::ExpertFfnW1 => experts(&[L::ExpertGate(0), L::ExpertUp(0)]),
        Op::ExpertFfnW2 => experts(&[L::ExpertDown(0)]),
        Op::LmHead => dense(&[TensorId::LmHeadWeight], batch.n_wanted()),
        Op::Embedding => (tokens * model.matrix(TensorId::TokenEmbedding).row_bytes(), 0),
        _ => (0, 0),
    }
}
