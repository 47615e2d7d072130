//! Every weight of a PhiMoE model: its identity, its shape, and its names in HF and GGUF files.

use crate::PhimoeConfig;

/// One weight tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// Token embedding, `vocab x hidden`.
    TokenEmbedding,
    /// A tensor of a layer.
    Layer(u16, LayerTensor),
    /// Weight of the final LayerNorm.
    OutputNormWeight,
    /// Bias of the final LayerNorm.
    OutputNormBias,
    /// Output projection, `vocab x hidden`.
    LmHeadWeight,
    /// Bias of the output projection.
    LmHeadBias,
}

/// One tensor of a layer. Matrices are `rows x columns`, with `y = W x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names say it; shapes are in `TensorId::shape`
pub enum LayerTensor {
    AttnNormWeight,
    AttnNormBias,
    QWeight,
    QBias,
    KWeight,
    KBias,
    VWeight,
    VBias,
    OWeight,
    OBias,
    FfnNormWeight,
    FfnNormBias,
    RouterWeight,
    /// w1 of an expert, `width x hidden`.
    ExpertGate(u16),
    /// w3 of an expert, `width x hidden`.
    ExpertUp(u16),
    /// w2 of an expert, `hidden x width`.
    ExpertDown(u16),
}

/// What a tensor is for; decides how it is stored and quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The token embedding.
    Embedding,
    /// q, k, v and o projections.
    Attention,
    /// The experts' matrices.
    Experts,
    /// The router's matrix.
    Router,
    /// LayerNorm weights and biases.
    Norm,
    /// Biases of projections.
    Bias,
    /// The output projection.
    LmHead,
}

impl Component {
    /// Every component, in the order of [`crate::Checkpoint`] summaries.
    pub const ALL: [Self; 7] = [
        Self::Embedding,
        Self::Attention,
        Self::Experts,
        Self::Router,
        Self::Norm,
        Self::Bias,
        Self::LmHead,
    ];

    /// The name users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Experts => "experts",
            Self::Router => "router",
            Self::Norm => "norms",
            Self::Bias => "biases",
            Self::LmHead => "lm_head",
        }
    }
}

/// A tensor's place in a GGUF file: its name and, for experts, which slice of the stack it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufName {
    /// Name of the tensor in the file.
    pub name: String,
    /// Index of the expert whose matrix this is, where the file stacks all experts of a layer.
    pub expert: Option<usize>,
}

impl TensorId {
    /// `(rows, columns)`; vectors are one row.
    pub fn shape(self, c: &PhimoeConfig) -> (usize, usize) {
        use LayerTensor as L;
        match self {
            Self::TokenEmbedding | Self::LmHeadWeight => (c.vocab_size, c.hidden_size),
            Self::OutputNormWeight | Self::OutputNormBias => (1, c.hidden_size),
            Self::LmHeadBias => (1, c.vocab_size),
            Self::Layer(_, t) => match t {
                L::AttnNormWeight
                | L::AttnNormBias
                | L::FfnNormWeight
                | L::FfnNormBias
                | L::OBias => (1, c.hidden_size),
                L::QWeight => (c.q_dim(), c.hidden_size),
                L::QBias => (1, c.q_dim()),
                L::KWeight | L::VWeight => (c.kv_dim(), c.hidden_size),
                L::KBias | L::VBias => (1, c.kv_dim()),
                L::OWeight => (c.hidden_size, c.q_dim()),
                L::RouterWeight => (c.n_experts, c.hidden_size),
                L::ExpertGate(_) | L::ExpertUp(_) => (c.expert_width, c.hidden_size),
                L::ExpertDown(_) => (c.hidden_size, c.expert_width),
            },
        }
    }

    /// Number of weights.
    pub fn len(self, c: &PhimoeConfig) -> usize {
        let (rows, cols) = self.shape(c);
        rows * cols
    }

    /// What the tensor is for.
    pub fn component(self) -> Component {
        use LayerTensor as L;
        match self {
            Self::TokenEmbedding => Component::Embedding,
            Self::LmHeadWeight => Component::LmHead,
            Self::OutputNormWeight | Self::OutputNormBias => Component::Norm,
            Self::LmHeadBias => Component::Bias,
            Self::Layer(_, t) => match t {
                L::AttnNormWeight | L::AttnNormBias | L::FfnNormWeight | L::FfnNormBias => {
                    Component::Norm
                }
                L::QBias | L::KBias | L::VBias | L::OBias => Component::Bias,
                L::QWeight | L::KWeight | L::VWeight | L::OWeight => Component::Attention,
                L::RouterWeight => Component::Router,
                L::ExpertGate(_) | L::ExpertUp(_) | L::ExpertDown(_) => Component::Experts,
            },
        }
    }

    /// Whether the tensor is a vector (`shape` gives one row, files give one dimension).
    pub fn is_vector(self) -> bool {
        matches!(self.component(), Component::Norm | Component::Bias)
    }

    /// The tensor's place in the [`catalogue`] of a model of so many layers with so many experts each.
    pub fn index(self, n_layers: usize, n_experts: usize) -> usize {
        let layer = |layer: usize| 1 + layer * (DENSE.len() + 3 * n_experts);
        match self {
            Self::TokenEmbedding => 0,
            Self::Layer(index, tensor) => layer(usize::from(index)) + tensor.index(n_experts),
            Self::OutputNormWeight => layer(n_layers),
            Self::OutputNormBias => layer(n_layers) + 1,
            Self::LmHeadWeight => layer(n_layers) + 2,
            Self::LmHeadBias => layer(n_layers) + 3,
        }
    }

    /// The name in HF checkpoints.
    pub fn hf_name(self) -> String {
        use LayerTensor as L;
        let (layer, tensor) = match self {
            Self::TokenEmbedding => return "model.embed_tokens.weight".to_owned(),
            Self::OutputNormWeight => return "model.norm.weight".to_owned(),
            Self::OutputNormBias => return "model.norm.bias".to_owned(),
            Self::LmHeadWeight => return "lm_head.weight".to_owned(),
            Self::LmHeadBias => return "lm_head.bias".to_owned(),
            Self::Layer(layer, tensor) => (layer, tensor),
        };
        let tail = match tensor {
            L::AttnNormWeight => "input_layernorm.weight",
            L::AttnNormBias => "input_layernorm.bias",
            L::QWeight => "self_attn.q_proj.weight",
            L::QBias => "self_attn.q_proj.bias",
            L::KWeight => "self_attn.k_proj.weight",
            L::KBias => "self_attn.k_proj.bias",
            L::VWeight => "self_attn.v_proj.weight",
            L::VBias => "self_attn.v_proj.bias",
            L::OWeight => "self_attn.o_proj.weight",
            L::OBias => "self_attn.o_proj.bias",
            L::FfnNormWeight => "post_attention_layernorm.weight",
            L::FfnNormBias => "post_attention_layernorm.bias",
            L::RouterWeight => "block_sparse_moe.gate.weight",
            L::ExpertGate(e) => {
                return format!("model.layers.{layer}.block_sparse_moe.experts.{e}.w1.weight");
            }
            L::ExpertUp(e) => {
                return format!("model.layers.{layer}.block_sparse_moe.experts.{e}.w3.weight");
            }
            L::ExpertDown(e) => {
                return format!("model.layers.{layer}.block_sparse_moe.experts.{e}.w2.weight");
            }
        };
        format!("model.layers.{layer}.{tail}")
    }

    /// The name in GGUF files.
    pub fn gguf_name(self) -> GgufName {
        use LayerTensor as L;
        let plain = |name: &str| GgufName { name: name.to_owned(), expert: None };
        let (layer, tensor) = match self {
            Self::TokenEmbedding => return plain("token_embd.weight"),
            Self::OutputNormWeight => return plain("output_norm.weight"),
            Self::OutputNormBias => return plain("output_norm.bias"),
            Self::LmHeadWeight => return plain("output.weight"),
            Self::LmHeadBias => return plain("output.bias"),
            Self::Layer(layer, tensor) => (layer, tensor),
        };
        let (tail, expert) = match tensor {
            L::AttnNormWeight => ("attn_norm.weight", None),
            L::AttnNormBias => ("attn_norm.bias", None),
            L::QWeight => ("attn_q.weight", None),
            L::QBias => ("attn_q.bias", None),
            L::KWeight => ("attn_k.weight", None),
            L::KBias => ("attn_k.bias", None),
            L::VWeight => ("attn_v.weight", None),
            L::VBias => ("attn_v.bias", None),
            L::OWeight => ("attn_output.weight", None),
            L::OBias => ("attn_output.bias", None),
            L::FfnNormWeight => ("ffn_norm.weight", None),
            L::FfnNormBias => ("ffn_norm.bias", None),
            L::RouterWeight => ("ffn_gate_inp.weight", None),
            L::ExpertGate(e) => ("ffn_gate_exps.weight", Some(usize::from(e))),
            L::ExpertUp(e) => ("ffn_up_exps.weight", Some(usize::from(e))),
            L::ExpertDown(e) => ("ffn_down_exps.weight", Some(usize::from(e))),
        };
        GgufName { name: format!("blk.{layer}.{tail}"), expert }
    }
}

impl LayerTensor {
    /// The tensor's place among those of a layer: [`DENSE`] ones first, then all experts of a kind after those of another.
    fn index(self, n_experts: usize) -> usize {
        let expert =
            |expert: u16, kind: usize| DENSE.len() + kind * n_experts + usize::from(expert);
        match self {
            Self::AttnNormWeight => 0,
            Self::AttnNormBias => 1,
            Self::QWeight => 2,
            Self::QBias => 3,
            Self::KWeight => 4,
            Self::KBias => 5,
            Self::VWeight => 6,
            Self::VBias => 7,
            Self::OWeight => 8,
            Self::OBias => 9,
            Self::FfnNormWeight => 10,
            Self::FfnNormBias => 11,
            Self::RouterWeight => 12,
            Self::ExpertGate(e) => expert(e, 0),
            Self::ExpertUp(e) => expert(e, 1),
            Self::ExpertDown(e) => expert(e, 2),
        }
    }
}

/// Tensors of a layer that every token reads, in the order of use.
const DENSE: [LayerTensor; 13] = [
    LayerTensor::AttnNormWeight,
    LayerTensor::AttnNormBias,
    LayerTensor::QWeight,
    LayerTensor::QBias,
    LayerTensor::KWeight,
    LayerTensor::KBias,
    LayerTensor::VWeight,
    LayerTensor::VBias,
    LayerTensor::OWeight,
    LayerTensor::OBias,
    LayerTensor::FfnNormWeight,
    LayerTensor::FfnNormBias,
    LayerTensor::RouterWeight,
];

/// Every tensor of a model, in the order in which GGUF files of ours hold them: what a token needs first comes
/// first, and the experts of one kind lie together.
///
/// Lazy, because a hostile config may promise millions of tensors that its files do not have.
pub fn catalogue(config: &PhimoeConfig) -> impl Iterator<Item = TensorId> + use<> {
    use LayerTensor as L;
    let small = |n: usize| u16::try_from(n).unwrap_or(u16::MAX); // the config limits both to 4096
    let (layers, experts) = (small(config.n_layers), small(config.n_experts));
    let layer = move |layer: u16| {
        let routed = [L::ExpertGate, L::ExpertUp, L::ExpertDown]
            .into_iter()
            .flat_map(move |kind| (0..experts).map(kind));
        DENSE.into_iter().chain(routed).map(move |t| TensorId::Layer(layer, t))
    };
    let last = [
        TensorId::OutputNormWeight,
        TensorId::OutputNormBias,
        TensorId::LmHeadWeight,
        TensorId::LmHeadBias,
    ];
    std::iter::once(TensorId::TokenEmbedding).chain((0..layers).flat_map(layer)).chain(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// The index of the real checkpoint lists exactly the names that the catalogue makes.
    #[test]
    fn names_are_those_of_the_real_checkpoint() {
        let data = |f: &str| std::fs::read(tandem_testkit::testdata(f)).unwrap();
        let config = PhimoeConfig::from_json_bytes(
            Path::new("config.json"),
            &data("phi-tiny-moe/config.json"),
        )
        .unwrap();
        let index: serde_json::Value =
            serde_json::from_slice(&data("phi-tiny-moe/model.safetensors.index.json")).unwrap();
        let expected: BTreeSet<String> =
            index["weight_map"].as_object().unwrap().keys().cloned().collect();
        let ids: Vec<_> = catalogue(&config).collect();
        let names: BTreeSet<String> = ids.iter().map(|t| t.hf_name()).collect();
        assert_eq!(names, expected);
        assert_eq!(ids.len(), 1957);
        let places = ids.iter().map(|t| t.index(config.n_layers, config.n_experts));
        assert!(places.eq(0..ids.len()), "places are those of the catalogue");
        let weights: usize = ids.iter().map(|t| t.len(&config)).sum();
        assert_eq!(weights, 3_755_220_288);
    }
}
