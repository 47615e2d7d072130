//! What passes are to tell.

use tandem_memory::KvType;
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::{Checkpoint, TensorId};
use tandem_runtime::bandwidth::{Capacity, HeavyOperations, MonitorParams};
use tandem_runtime::plan::Step;
use tandem_runtime::telemetry::{Activity, TelemetryParams, Timeline, TimelineEvent};
use tandem_runtime::{InstrumentationParams, Operation as Op, RouterTrace};

/// Everything is watched, and the token is in use.
pub(crate) fn params(checkpoint: &Checkpoint) -> InstrumentationParams {
    let config = checkpoint.config();
    let telemetry = TelemetryParams::new(config.n_layers, config.n_experts);
    let capacity = Some(Capacity { cpu: 1e9, igpu: 1e9, together: 1e9 });
    InstrumentationParams {
        telemetry: Some(TelemetryParams { recent: 1 << 16, ..telemetry }),
        monitor: MonitorParams { capacity, ..MonitorParams::default() },
        heavy: Some(HeavyOperations::default()),
        ..InstrumentationParams::default()
    }
}

/// The operations that were computed.
pub(crate) fn computed(timeline: &Timeline) -> Vec<&TimelineEvent> {
    timeline.events.iter().filter(|event| event.activity == Activity::Compute).collect()
}

/// Tokens that each expert of each layer got.
pub(crate) fn counts(checkpoint: &Checkpoint, trace: &RouterTrace) -> Vec<Vec<u64>> {
    let of_layer = |layer: &Vec<tandem_model::router::Routing>| {
        let mut counts = vec![0; checkpoint.config().n_experts];
        layer.iter().flat_map(|routing| routing.experts).for_each(|expert| counts[expert] += 1);
        counts
    };
    trace.routing.iter().map(of_layer).collect()
}

/// Bytes of matrices, keys and values that a step reads, from what the file says of them. `trace` is that of the pass
/// alone, which has so many tokens, and a cache in f16 of so many after it.
pub(crate) fn expected_bytes(
    checkpoint: &Checkpoint,
    trace: &RouterTrace,
    (tokens, context): (usize, usize),
    step: Step,
) -> usize {
    let layer = step.layer.unwrap_or_default();
    let whole = |id: TensorId| checkpoint.entry(id).n_bytes();
    let of_layer = |tensors: &[L]| {
        tensors.iter().map(|&tensor| whole(TensorId::Layer(layer, tensor))).sum::<usize>()
    };
    let experts = || {
        let counts = counts(checkpoint, trace);
        counts[usize::from(layer)].iter().filter(|count| **count > 0).count()
    };
    match step.operation {
        Op::Embedding => tokens * checkpoint.entry(TensorId::TokenEmbedding).row_bytes(),
        Op::AttentionQkvProj => of_layer(&[L::QWeight, L::KWeight, L::VWeight]),
        Op::AttentionCompute => 2 * KvType::F16.bytes(checkpoint.config().kv_dim()) * context,
        Op::AttentionOutputProj => of_layer(&[L::OWeight]),
        // Kept in f32, whatever the file has.
        Op::RouterLogits => {
            size_of::<f32>() * checkpoint.config().n_experts * checkpoint.config().hidden_size
        }
        Op::ExpertFfnW1 => experts() * of_layer(&[L::ExpertGate(0), L::ExpertUp(0)]),
        Op::ExpertFfnW2 => experts() * of_layer(&[L::ExpertDown(0)]),
        Op::LmHead => whole(TensorId::LmHeadWeight),
        _ => 0,
    }
}
