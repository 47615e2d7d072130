//! What the steps of a pass read from memory.

use tandem_memory::KvType;
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::{Checkpoint, TensorId};

use super::{PassSize, Placement};
use crate::profile::Operation;

/// Bytes of weights, or of keys and values, by the device that reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// By the CPU.
    pub cpu: u64,
    /// By the GPU.
    pub igpu: u64,
}

impl Traffic {
    /// What an operation of a pass reads. Of experts, as many as the pass's tokens can choose at most.
    ///
    /// # Panics
    /// When there is no such layer, or the operation is of layers and `layer` is `None`.
    pub fn new(
        checkpoint: &Checkpoint,
        kv: KvType,
        pass: PassSize,
        (operation, layer, placement): (Operation, Option<usize>, Placement),
    ) -> Self {
        let bytes = bytes(checkpoint, kv, pass, operation, layer);
        let igpu = match placement {
            Placement::Cpu => 0,
            Placement::Igpu => bytes,
            Placement::Split(ratio) => (bytes as f64 * f64::from(ratio)).round() as u64,
            // As if all experts were as likely.
            Placement::Experts(range) => {
                let share = range.count() as f64 / checkpoint.config().n_experts as f64;
                (bytes as f64 * share).round() as u64
            }
        };
        Self { cpu: bytes - igpu, igpu }
    }
}

fn bytes(
    checkpoint: &Checkpoint,
    kv: KvType,
    pass: PassSize,
    operation: Operation,
    layer: Option<usize>,
) -> u64 {
    use Operation as O;
    let config = checkpoint.config();
    let whole = |ids: &[TensorId]| ids.iter().map(|&id| checkpoint.entry(id).n_bytes()).sum();
    let of_layer = |tensors: &[L]| {
        let Some(layer) = layer else { panic!("{} is of a layer", operation.name()) };
        let layer = u16::try_from(layer).unwrap_or(u16::MAX);
        let ids: Vec<_> = tensors.iter().map(|&tensor| TensorId::Layer(layer, tensor)).collect();
        whole(&ids)
    };
    let experts = config.n_experts.min(EXPERTS_PER_TOKEN * pass.tokens);
    let bytes: usize = match operation {
        O::Embedding => pass.tokens * checkpoint.entry(TensorId::TokenEmbedding).row_bytes(),
        O::AttentionLayernorm => of_layer(&[L::AttnNormWeight, L::AttnNormBias]),
        O::AttentionQkvProj => {
            of_layer(&[L::QWeight, L::QBias, L::KWeight, L::KBias, L::VWeight, L::VBias])
        }
        O::AttentionCompute => {
            // The keys that the pass's tokens see together.
            let window =
                config.sliding_window.map_or(usize::MAX, |window| window + pass.tokens - 1);
            2 * kv.bytes(config.kv_dim()) * pass.context.min(window)
        }
        O::AttentionOutputProj => of_layer(&[L::OWeight, L::OBias]),
        O::MoeLayernorm => of_layer(&[L::FfnNormWeight, L::FfnNormBias]),
        O::RouterLogits => of_layer(&[L::RouterWeight]),
        O::ExpertFfnW1 => experts * of_layer(&[L::ExpertGate(0), L::ExpertUp(0)]),
        O::ExpertFfnW2 => experts * of_layer(&[L::ExpertDown(0)]),
        O::FinalLayernorm => whole(&[TensorId::OutputNormWeight, TensorId::OutputNormBias]),
        O::LmHead => whole(&[TensorId::LmHeadWeight, TensorId::LmHeadBias]),
        // They have no weights.
        O::ExpertSelection | O::ExpertDispatch | O::ExpertFfnActivation | O::ExpertGather => 0,
    };
    bytes as u64
}

#[cfg(test)]
mod tests {
    use tandem_testkit::testdata;

    use super::*;
    use crate::plan::Plan;

    fn total(checkpoint: &Checkpoint, pass: PassSize, placement: Placement) -> Traffic {
        let plan = Plan::everything(checkpoint.config(), placement);
        plan.steps().fold(Traffic::default(), |sum, step| {
            let layer = step.layer.map(usize::from);
            let step = (step.operation, layer, step.placement);
            let traffic = Traffic::new(checkpoint, KvType::F16, pass, step);
            Traffic { cpu: sum.cpu + traffic.cpu, igpu: sum.igpu + traffic.igpu }
        })
    }

    #[test]
    fn one_token_reads_what_the_summary_says() {
        let checkpoint = Checkpoint::open(&testdata("golden/model")).unwrap();
        let config = checkpoint.config();
        let summary = checkpoint.summary().total().bytes_per_token;
        let pass = PassSize { tokens: 1, context: 5 };
        let kv = (5 * 2 * 2 * config.kv_dim() * config.n_layers) as u64;
        let cpu = total(&checkpoint, pass, Placement::Cpu);
        assert_eq!(cpu, Traffic { cpu: summary + kv, igpu: 0 });
        let igpu = total(&checkpoint, pass, Placement::Igpu);
        assert_eq!(igpu, Traffic { cpu: 0, igpu: cpu.cpu });
        let split = total(&checkpoint, pass, Placement::Split(0.25));
        assert_eq!(split.cpu + split.igpu, cpu.cpu);
        assert!(split.igpu > cpu.cpu / 8 && split.igpu < cpu.cpu / 4, "{split:?} of {cpu:?}");
    }

    #[test]
    fn many_tokens_read_every_expert_once() {
        let checkpoint = Checkpoint::open(&testdata("golden/model")).unwrap();
        let all = checkpoint.summary().total();
        let pass = PassSize { tokens: 256, context: 0 };
        let embedding = checkpoint.entry(TensorId::TokenEmbedding);
        let expected = all.bytes - embedding.n_bytes() as u64 + 256 * embedding.row_bytes() as u64;
        assert_eq!(total(&checkpoint, pass, Placement::Cpu).cpu, expected);
    }
}
