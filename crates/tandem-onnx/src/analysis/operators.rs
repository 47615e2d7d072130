//! What ONNX and ONNX Runtime have for each operation of PhiMoE.
//!
//! Names and versions are held against the packages `onnx` and `onnxruntime` by the tests, as is what is said of routing.

use serde::Serialize;
use tandem_runtime::Operation;

/// How an operation can be written in ONNX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Support {
    /// Standard operators that the export writes it in.
    pub standard: &'static [&'static str],
    /// Whether one standard operator of a newer set does (nearly) all of it: its name and the set's version.
    pub newer_standard: Option<(&'static str, u32)>,
    /// ONNX Runtime's own operators that do it.
    pub contrib: &'static [&'static str],
    /// The routing that those implement, or another limit of them.
    pub note: Option<&'static str>,
    /// Why a kernel of one's own is needed to do it well.
    pub custom_kernel: Option<&'static str>,
}

const LAYER_NORM: Support = Support {
    standard: &["LayerNormalization"],
    newer_standard: None,
    contrib: &["SkipLayerNormalization"],
    note: Some("SkipLayerNormalization also adds the residual stream"),
    custom_kernel: None,
};

const LINEAR: Support = Support {
    standard: &["Gemm"],
    newer_standard: None,
    contrib: &["MatMulNBits"],
    note: Some("MatMulNBits takes weights of 4 and 8 bits in blocks"),
    custom_kernel: None,
};

/// What MoE and QMoE do with router logits.
const MOE_ROUTING: &str = "MoE and QMoE route by softmax of the largest logits; on the CPU they take the attribute \
    use_sparse_mixer and ignore it. QMoE computes with SparseMixer's weights where they come in as its input \
    router_weights, computed before by standard operators";

const PRODUCTS: Support = Support {
    standard: &["Split", "Gemm", "Concat"],
    newer_standard: None,
    contrib: &["MatMulNBits", "MoE", "QMoE"],
    note: Some(MOE_ROUTING),
    custom_kernel: Some(
        "ONNX has no product with a different matrix for each group of rows: it is one Gemm per expert, 48 of them a \
         layer with 16 experts, most of them with no rows when one token is decoded",
    ),
};

/// What there is for an operation.
pub const fn support(operation: Operation) -> Support {
    match operation {
        Operation::Embedding => Support {
            standard: &["Gather"],
            newer_standard: None,
            contrib: &["GatherBlockQuantized"],
            note: None,
            custom_kernel: None,
        },
        Operation::AttentionLayernorm | Operation::MoeLayernorm | Operation::FinalLayernorm => {
            LAYER_NORM
        }
        Operation::AttentionQkvProj
        | Operation::AttentionOutputProj
        | Operation::RouterLogits
        | Operation::LmHead => LINEAR,
        Operation::AttentionCompute => Support {
            standard: &["Cos", "Sin", "Concat", "MatMul", "Where", "Softmax"],
            newer_standard: Some(("Attention", 23)),
            contrib: &["GroupQueryAttention", "RotaryEmbedding"],
            note: Some("GroupQueryAttention rotates, keeps the cache and knows a local window"),
            custom_kernel: None,
        },
        Operation::ExpertSelection => Support {
            standard: &["ArgMax", "GatherElements", "Max", "Greater", "Where", "Softmax"],
            newer_standard: None,
            contrib: &[],
            note: Some(MOE_ROUTING),
            custom_kernel: Some(
                "SparseMixer is two searches for the largest logit, each with a softmax over the logits near it; no \
                 operator does that, and exactly in standard operators it is 25 nodes for a few numbers a token",
            ),
        },
        Operation::ExpertDispatch => Support {
            standard: &["TopK", "Gather", "ReduceSum"],
            newer_standard: None,
            contrib: &["MoE", "QMoE"],
            note: Some("sorting by expert is part of MoE and QMoE"),
            custom_kernel: None,
        },
        Operation::ExpertFfnW1 | Operation::ExpertFfnW2 => PRODUCTS,
        Operation::ExpertFfnActivation => Support {
            standard: &["Sigmoid", "Mul"],
            newer_standard: Some(("Swish", 24)),
            contrib: &["MoE", "QMoE"],
            note: None,
            custom_kernel: None,
        },
        Operation::ExpertGather => Support {
            standard: &["TopK", "Gather", "Mul", "ReduceSum", "Add"],
            newer_standard: None,
            contrib: &["MoE", "QMoE"],
            note: None,
            custom_kernel: None,
        },
    }
}
