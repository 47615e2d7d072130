//! PhiMoE in ONNX operators: one function for each operation of the forward pass.
//!
//! Activations are f32 and two-dimensional between operations, `tokens x width`, with `tokens = batch * sequence`. Weights
//! keep the layout of checkpoints, `out x in`, which Gemm takes with `transB` and MatMulNBits as it is.

mod attention;
mod experts;
mod model;
mod positions;
mod single;
mod sparsemixer;

#[cfg(feature = "onnxruntime")]
pub(crate) use model::LOGITS_TO_KEEP;

use tandem_formats::FormatError;
use tandem_model::catalogue::{Component, LayerTensor};
use tandem_model::{Checkpoint, PhimoeConfig, Result, TensorId, catalogue};

use crate::data::{BLOCK, DataFile, Encoding};
use crate::graph::{Attribute, Graph, Value};
use crate::proto::DataType;

/// Encoding of the weights of an export. Norms, biases and router are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// Gemm with f32 weights.
    F32,
    /// f16 weights, which the graph casts to f32 before Gemm: half the file, and the arithmetic stays f32 unless the
    /// runtime takes the cast for leave to do better.
    F16,
    /// MatMulNBits (ONNX Runtime's own operator) in blocks of 32: attention and experts of 4 bits, exactly the weights
    /// of q4_0; lm_head of 8 bits, exactly those of q8_0. The embedding is f16.
    Int4,
}

impl WeightType {
    fn of(self, component: Component) -> Encoding {
        match (component, self) {
            (Component::Router | Component::Norm | Component::Bias, _) | (_, Self::F32) => {
                Encoding::F32
            }
            (_, Self::F16) | (Component::Embedding, Self::Int4) => Encoding::F16,
            (Component::LmHead, Self::Int4) => Encoding::Blocks { bits: 8 },
            (Component::Attention | Component::Experts, Self::Int4) => Encoding::Blocks { bits: 4 },
        }
    }
}

/// A model being turned into graphs.
pub(crate) struct Exporter<'a> {
    config: &'a PhimoeConfig,
    weights: WeightType,
    /// Where the graphs' weights lie.
    pub(crate) data: DataFile,
}

impl<'a> Exporter<'a> {
    /// Weights will lie in the file `data`.
    ///
    /// # Errors
    /// Where a tensor's rows are no whole number of blocks.
    pub(crate) fn new(checkpoint: &'a Checkpoint, weights: WeightType, data: &str) -> Result<Self> {
        let config = checkpoint.config();
        for id in catalogue(config) {
            let (_, cols) = id.shape(config);
            let encoding = weights.of(id.component());
            if matches!(encoding, Encoding::Blocks { .. }) && !cols.is_multiple_of(BLOCK) {
                return Err(FormatError::invalid(
                    checkpoint.path(),
                    format!("columns of `{}`", id.hf_name()),
                    format!("a multiple of {BLOCK} for int4"),
                    cols,
                )
                .into());
            }
        }
        Ok(Self { config, weights, data: DataFile::new(data) })
    }

    /// Rows of the embedding for ids of any shape.
    fn embedding(&mut self, g: &mut Graph, ids: &Value) -> Value {
        let all = g.ints(&[-1]);
        let flat = g.op("Reshape", &[ids, &all]);
        let table = self.tensor(g, TensorId::TokenEmbedding);
        let rows = g.op("Gather", &[&table, &flat]);
        self.decoded(g, rows, TensorId::TokenEmbedding)
    }

    /// LayerNorm of each row.
    fn layer_norm(&mut self, g: &mut Graph, x: &Value, weight: TensorId, bias: TensorId) -> Value {
        let (weight, bias) = (self.tensor(g, weight), self.tensor(g, bias));
        let epsilon = ("epsilon", Attribute::Float(self.config.layer_norm_eps));
        g.op_with("LayerNormalization", &[x, &weight, &bias], &[epsilon])
    }

    fn attention_layer_norm(&mut self, g: &mut Graph, layer: u16, x: &Value) -> Value {
        let id = |t| TensorId::Layer(layer, t);
        self.layer_norm(g, x, id(LayerTensor::AttnNormWeight), id(LayerTensor::AttnNormBias))
    }

    fn moe_layer_norm(&mut self, g: &mut Graph, layer: u16, x: &Value) -> Value {
        let id = |t| TensorId::Layer(layer, t);
        self.layer_norm(g, x, id(LayerTensor::FfnNormWeight), id(LayerTensor::FfnNormBias))
    }

    fn final_layer_norm(&mut self, g: &mut Graph, x: &Value) -> Value {
        self.layer_norm(g, x, TensorId::OutputNormWeight, TensorId::OutputNormBias)
    }

    fn router_logits(&mut self, g: &mut Graph, layer: u16, x: &Value) -> Value {
        self.linear(g, x, TensorId::Layer(layer, LayerTensor::RouterWeight), None)
    }

    fn lm_head(&mut self, g: &mut Graph, x: &Value) -> Value {
        self.linear(g, x, TensorId::LmHeadWeight, Some(TensorId::LmHeadBias))
    }

    /// `x W^T + b`; with no rows where `x` has none.
    fn linear(
        &mut self,
        g: &mut Graph,
        x: &Value,
        weight: TensorId,
        bias: Option<TensorId>,
    ) -> Value {
        let bias = bias.map(|id| self.tensor(g, id));
        if let Encoding::Blocks { bits } = self.weights.of(weight.component()) {
            let product = self.block_product(g, x, weight, bits);
            return match bias {
                Some(bias) => g.op("Add", &[&product, &bias]),
                None => product,
            };
        }
        let stored = self.tensor(g, weight);
        let stored = self.decoded(g, stored, weight);
        let inputs: Vec<&Value> = [x, &stored].into_iter().chain(&bias).collect();
        g.op_with("Gemm", &inputs, &[("transB", Attribute::Int(1))])
    }

    fn block_product(&mut self, g: &mut Graph, x: &Value, weight: TensorId, bits: usize) -> Value {
        /// Activations may be rounded to 8 bits in blocks: what every runtime of 4-bit weights does for speed.
        const INT8_ACTIVATIONS: i64 = 4;
        let (rows, cols) = weight.shape(self.config);
        let tensors = self.data.tensors(self.config, weight, Encoding::Blocks { bits }).to_vec();
        let stored: Vec<Value> = tensors.into_iter().map(|t| g.initializer(t)).collect();
        let inputs: Vec<&Value> = [x].into_iter().chain(&stored).collect();
        let attributes = [
            ("K", Attribute::Int(cols as i64)),
            ("N", Attribute::Int(rows as i64)),
            ("bits", Attribute::Int(bits as i64)),
            ("block_size", Attribute::Int(BLOCK as i64)),
            ("accuracy_level", Attribute::Int(INT8_ACTIVATIONS)),
        ];
        g.contrib("MatMulNBits", &inputs, &attributes)
    }

    /// A weight of f32 or f16 as it is stored.
    fn tensor(&mut self, g: &mut Graph, id: TensorId) -> Value {
        let encoding = self.weights.of(id.component());
        g.initializer(self.data.tensors(self.config, id, encoding)[0].clone())
    }

    /// What was taken from a weight, as f32.
    fn decoded(&self, g: &mut Graph, stored: Value, id: TensorId) -> Value {
        match self.weights.of(id.component()) {
            Encoding::F16 => cast(g, &stored, DataType::Float),
            _ => stored,
        }
    }
}

fn cast(g: &mut Graph, x: &Value, to: DataType) -> Value {
    g.op_with("Cast", &[x], &[("to", Attribute::Int(i64::from(i32::from(to))))])
}

fn axis(axis: i64) -> (&'static str, Attribute) {
    ("axis", Attribute::Int(axis))
}
