//! What a model is made of, what ONNX has for it, and where a machine should compute it.

mod cost;
mod machine;
mod operators;
mod placement;

use serde::Serialize;
use tandem_formats::DType;
use tandem_model::{PhimoeConfig, Summary, TensorId};
use tandem_runtime::Operation;

pub use cost::{Cost, PROMPT, Pass, costs, kv_bytes};
pub use machine::{DeviceProfile, MachineProfile};
pub use operators::{Support, support};
pub use placement::{Bound, Device, Placement, place};

/// Operations that together take this share of the time are critical.
const CRITICAL_SHARE: f64 = 0.9;

/// What is said about one operation; costs and times are of all layers together.
#[derive(Clone, Debug, Serialize)]
pub struct OperationReport {
    /// The name in profiles and in the partition config.
    pub name: &'static str,
    /// How often a pass computes it.
    pub times: usize,
    /// What ONNX has for it.
    pub onnx: Support,
    /// One token after [`PROMPT`] others.
    pub decode: PassReport,
    /// [`PROMPT`] tokens.
    pub prefill: PassReport,
}

/// An operation in one kind of pass.
#[derive(Clone, Debug, Serialize)]
pub struct PassReport {
    /// What it reads and computes.
    #[serde(flatten)]
    pub cost: Cost,
    /// Where it should be computed.
    #[serde(flatten)]
    pub placement: Placement,
}

/// An operation that decides how fast the model is.
#[derive(Clone, Debug, Serialize)]
pub struct Critical {
    /// The operation.
    pub name: &'static str,
    /// Its share of the time of decoding, each operation being where it should be.
    pub decode_share: f64,
    /// Its share of the time of a prompt.
    pub prefill_share: f64,
}

/// How the model's data should lie in memory.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Bytes of f16 keys and values when the context is full.
    pub kv_bytes: u64,
    /// Whether both fit into the machine's memory, where that is known.
    pub fits: Option<bool>,
    /// What to do.
    pub strategy: &'static str,
}

/// The analysis.
#[derive(Clone, Debug, Serialize)]
pub struct Analysis {
    /// The machine that devices are recommended for.
    pub machine: MachineProfile,
    /// Every operation, in the order of computation.
    pub operations: Vec<OperationReport>,
    /// Memory.
    pub memory: Memory,
    /// Operations that together take nine tenths of the time of decoding or of a prompt, the largest first.
    pub critical_kernels: Vec<Critical>,
}

/// Analyses a model whose tensors have the encodings that `dtype` gives.
///
/// # Panics
/// If a row is no whole number of blocks of its encoding.
pub fn analyze(
    config: &PhimoeConfig,
    dtype: impl Fn(TensorId) -> DType + Copy,
    machine: &MachineProfile,
) -> Analysis {
    let decode = costs(config, dtype, Pass::Decode);
    let prefill = costs(config, dtype, Pass::Prefill);
    let operations: Vec<OperationReport> = Operation::ALL
        .into_iter()
        .map(|operation| {
            let times = match operation {
                Operation::Embedding | Operation::FinalLayernorm | Operation::LmHead => 1,
                _ => config.n_layers,
            };
            let is_quantized = weights_of(operation).is_some_and(|id| dtype(id).is_quantized());
            let pass = |costs: &[Cost]| {
                let cost = costs[operation as usize];
                PassReport { cost, placement: place(machine, cost, is_quantized, times) }
            };
            OperationReport {
                name: operation.name(),
                times,
                onnx: support(operation),
                decode: pass(&decode),
                prefill: pass(&prefill),
            }
        })
        .collect();
    let critical_kernels = critical(&operations);
    let memory = memory(config, Summary::of(config, dtype).total().bytes, machine);
    Analysis { machine: machine.clone(), operations, memory, critical_kernels }
}

/// A matrix that an operation multiplies with.
fn weights_of(operation: Operation) -> Option<TensorId> {
    use tandem_model::catalogue::LayerTensor as L;
    let tensor = match operation {
        Operation::LmHead => return Some(TensorId::LmHeadWeight),
        Operation::AttentionQkvProj => L::QWeight,
        Operation::AttentionOutputProj => L::OWeight,
        Operation::RouterLogits => L::RouterWeight,
        Operation::ExpertFfnW1 => L::ExpertGate(0),
        Operation::ExpertFfnW2 => L::ExpertDown(0),
        _ => return None,
    };
    Some(TensorId::Layer(0, tensor))
}

fn critical(operations: &[OperationReport]) -> Vec<Critical> {
    let sum = |time: fn(&OperationReport) -> f64| operations.iter().map(time).sum::<f64>();
    let decode = sum(|o| o.decode.placement.seconds);
    let prefill = sum(|o| o.prefill.placement.seconds);
    let mut all: Vec<Critical> = operations
        .iter()
        .map(|o| Critical {
            name: o.name,
            decode_share: o.decode.placement.seconds / decode,
            prefill_share: o.prefill.placement.seconds / prefill,
        })
        .collect();
    let weight = |c: &Critical| c.decode_share + c.prefill_share;
    all.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    let (mut decode, mut prefill) = (0.0, 0.0);
    let enough = all.iter().position(|c| {
        decode += c.decode_share;
        prefill += c.prefill_share;
        decode >= CRITICAL_SHARE && prefill >= CRITICAL_SHARE
    });
    all.truncate(enough.map_or(all.len(), |last| last + 1));
    all
}

fn memory(config: &PhimoeConfig, weight_bytes: u64, machine: &MachineProfile) -> Memory {
    let kv_bytes = kv_bytes(config, config.context_length);
    let strategy = match (&machine.gpu, machine.shared_memory) {
        (None, _) => "one copy of the weights in the CPU's memory",
        (Some(_), true) => {
            "one copy of the weights that CPU and GPU both address; an expert cache would only copy what both can \
             read already"
        }
        (Some(_), false) => {
            "what every token reads in the GPU's memory; experts there as far as they fit, the rest uploaded when \
             chosen and kept least recently used"
        }
    };
    let fits = machine.memory_bytes.map(|bytes| weight_bytes + kv_bytes <= bytes);
    Memory { weight_bytes, kv_bytes, fits, strategy }
}
