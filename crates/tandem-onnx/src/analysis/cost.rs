//! What each operation reads and computes.

use serde::Serialize;
use tandem_formats::DType;
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::{PhimoeConfig, TensorId, catalogue};
use tandem_runtime::Operation;

/// Tokens of the prompt that is looked at, and tokens before the one that is decoded.
pub const PROMPT: usize = 512;

/// Bytes of an f16 key or value.
const KV_BYTES: u64 = 2;

/// Bytes read from memory, and additions and multiplications, of an operation in all layers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Bytes of weights, keys and values. What operations hand to each other stays in caches.
    pub bytes: u64,
    /// Additions and multiplications.
    pub arithmetic: u64,
}

/// A forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// One token after [`PROMPT`] others.
    Decode,
    /// [`PROMPT`] tokens together.
    Prefill,
}

impl Pass {
    fn tokens(self) -> u64 {
        match self {
            Self::Decode => 1,
            Self::Prefill => PROMPT as u64,
        }
    }
}

/// The operation that a weight belongs to.
fn operation(id: TensorId) -> Operation {
    match id {
        TensorId::TokenEmbedding => Operation::Embedding,
        TensorId::OutputNormWeight | TensorId::OutputNormBias => Operation::FinalLayernorm,
        TensorId::LmHeadWeight | TensorId::LmHeadBias => Operation::LmHead,
        TensorId::Layer(_, tensor) => match tensor {
            L::AttnNormWeight | L::AttnNormBias => Operation::AttentionLayernorm,
            L::QWeight | L::QBias | L::KWeight | L::KBias | L::VWeight | L::VBias => {
                Operation::AttentionQkvProj
            }
            L::OWeight | L::OBias => Operation::AttentionOutputProj,
            L::FfnNormWeight | L::FfnNormBias => Operation::MoeLayernorm,
            L::RouterWeight => Operation::RouterLogits,
            L::ExpertGate(_) | L::ExpertUp(_) => Operation::ExpertFfnW1,
            L::ExpertDown(_) => Operation::ExpertFfnW2,
        },
    }
}

/// Costs of all operations, in the order of [`Operation::ALL`].
///
/// # Panics
/// If a row is no whole number of blocks of its encoding.
pub fn costs(
    config: &PhimoeConfig,
    dtype: impl Fn(TensorId) -> DType,
    pass: Pass,
) -> [Cost; Operation::ALL.len()] {
    let mut costs = Operation::ALL.map(|operation| beside_weights(config, operation, pass));
    let tokens = pass.tokens();
    // Twice as many choices as tokens, and each expert is read once, however many chose it.
    let chosen = tokens * EXPERTS_PER_TOKEN as u64;
    let experts = config.n_experts as u64;
    let (mut expert_bytes, mut expert_arithmetic) = ([0; 2], [0; 2]);
    for id in catalogue(config) {
        let (rows, cols) = id.shape(config);
        let row_bytes = dtype(id).bytes_for(cols).expect("whole blocks") as u64;
        let (bytes, weights) = (rows as u64 * row_bytes, (rows * cols) as u64);
        let operation = operation(id);
        let cost = &mut costs[operation as usize];
        match operation {
            Operation::Embedding => cost.bytes += row_bytes * tokens.min(rows as u64),
            Operation::ExpertFfnW1 | Operation::ExpertFfnW2 => {
                let which = usize::from(operation == Operation::ExpertFfnW2);
                expert_bytes[which] += bytes;
                expert_arithmetic[which] += 2 * weights;
            }
            _ => {
                cost.bytes += bytes;
                if !id.is_vector() {
                    cost.arithmetic += 2 * weights * computed_tokens(operation, tokens);
                }
            }
        }
    }
    for (which, operation) in
        [Operation::ExpertFfnW1, Operation::ExpertFfnW2].into_iter().enumerate()
    {
        let cost = &mut costs[operation as usize];
        cost.bytes += expert_bytes[which] * chosen.min(experts) / experts;
        cost.arithmetic += expert_arithmetic[which] * chosen / experts;
    }
    costs
}

/// lm_head is computed for the last token only.
fn computed_tokens(operation: Operation, tokens: u64) -> u64 {
    if operation == Operation::LmHead { 1 } else { tokens }
}

/// What an operation costs besides products with weights.
fn beside_weights(c: &PhimoeConfig, operation: Operation, pass: Pass) -> Cost {
    let (layers, hidden, tokens) = (c.n_layers as u64, c.hidden_size as u64, pass.tokens());
    let choices = tokens * EXPERTS_PER_TOKEN as u64;
    let arithmetic = match operation {
        // Mean, variance, scaling, weight and bias.
        Operation::AttentionLayernorm | Operation::MoeLayernorm => 8 * hidden * tokens * layers,
        Operation::FinalLayernorm => 8 * hidden,
        Operation::AttentionCompute => return attention(c, pass),
        // Subtraction, division, exponential and sum of each logit, twice.
        Operation::ExpertSelection => 8 * c.n_experts as u64 * tokens * layers,
        Operation::ExpertFfnActivation => 4 * c.expert_width as u64 * choices * layers,
        Operation::ExpertGather => 2 * hidden * choices * layers,
        _ => 0,
    };
    Cost { bytes: 0, arithmetic }
}

/// Scores and sums over the keys that each query sees; the cache is read once.
fn attention(c: &PhimoeConfig, pass: Pass) -> Cost {
    let layers = c.n_layers as u64;
    let window = c.sliding_window.unwrap_or(usize::MAX);
    let (seen, cached) = match pass {
        Pass::Decode => ((PROMPT + 1).min(window) as u64, (PROMPT + 1).min(window)),
        Pass::Prefill => ((1..=PROMPT).map(|n| n.min(window) as u64).sum(), PROMPT),
    };
    Cost { bytes: kv_bytes(c, cached), arithmetic: 4 * c.q_dim() as u64 * seen * layers }
}

/// Bytes of f16 keys and values of so many tokens.
pub fn kv_bytes(c: &PhimoeConfig, tokens: usize) -> u64 {
    2 * KV_BYTES * (c.n_layers * c.kv_dim() * tokens) as u64
}
