//! `work_packet`: one operation of one layer.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Fault;
use super::tensor::Dtype;

/// The most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// One operation of one layer.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct WorkPacket {
    /// What the client calls it: a string or a number.
    pub packet_id: Value,
    /// The layer, from 0; nothing for what a token meets once.
    #[serde(default)]
    pub layer_idx: Option<usize>,
    /// The operation's name in the partition config.
    pub operation: String,
    /// What is to compute it.
    #[serde(default)]
    pub device_target: DeviceTarget,
    /// The input's shape: any dimensions of sequences and tokens, then those of the operation.
    pub input_shape: Vec<usize>,
    /// The input's type.
    #[serde(default)]
    pub input_dtype: Option<String>,
    /// Must be null: a client's pointer means nothing here, and is never followed.
    #[serde(default)]
    pub input_data_ptr: Value,
    /// What some operations need beside their input.
    #[serde(default)]
    pub params: Option<PacketParams>,
    /// Of packets that wait, the one with the highest priority comes first.
    #[serde(default)]
    pub priority: i64,
    /// A hint, see `docs/protocol.md`.
    #[serde(default)]
    pub can_pipeline: Option<bool>,
    /// A hint.
    #[serde(default)]
    pub memory_requirement_mb: Option<f64>,
    /// A hint.
    #[serde(default)]
    pub estimated_duration_ms: Option<f64>,
}

/// What some operations need beside their input.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PacketParams {
    /// For experts' operations: the two experts of each token.
    #[serde(default)]
    pub experts: Option<Vec<[u32; 2]>>,
    /// For `expert_gather`: their weights.
    #[serde(default)]
    pub expert_weights: Option<Vec<[f32; 2]>>,
}

/// What is to compute a packet.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DeviceTarget {
    /// The CPU.
    Cpu,
    /// The GPU.
    Igpu,
    /// What the running plan says for such a pass.
    #[default]
    Auto,
}

/// Where a packet's input came from.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum TensorSource {
    /// The client's frame.
    Tensor,
    /// Random numbers: the packet was a probe of how long the operation takes.
    Synthetic,
}

/// What came of a packet.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct PacketResult {
    /// The packet's.
    pub packet_id: Value,
    /// True: what fails is answered with an error.
    pub success: bool,
    /// Where the input came from.
    pub input: TensorSource,
    /// The output's shape.
    pub output_shape: Vec<usize>,
    /// Its type.
    pub output_dtype: String,
    /// Null: the output is in a frame of its own.
    pub output_data_ptr: Value,
    /// Time that the operation took, without bringing its input and output.
    pub actual_duration_ms: f64,
    /// `cpu`, `igpu` or `split`, both at the same time.
    pub device_used: String,
    /// Input, output and what the operation read beside them, in 10^6 bytes.
    pub memory_used_mb: f64,
    /// Null, but where the CPU computed what the GPU failed at: then why.
    pub error_message: Option<String>,
}

impl WorkPacket {
    /// Checks what does not depend on the model, and answers the input's type.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<Dtype, Fault> {
        if !(self.packet_id.is_string() || self.packet_id.is_number()) {
            return Err(Fault::request("packet_id: expected a string or a number"));
        }
        if !self.input_data_ptr.is_null() {
            return Err(Fault::request(
                "input_data_ptr: expected null: a pointer of another process cannot be followed; send the tensor in a \
                 frame after the JSON",
            ));
        }
        let dimensions = self.input_shape.len();
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(Fault::request(format!(
                "input_shape: expected 1 to {MAX_DIMENSIONS} dimensions, found {dimensions}"
            )));
        }
        for (name, hint) in [
            ("memory_requirement_mb", self.memory_requirement_mb),
            ("estimated_duration_ms", self.estimated_duration_ms),
        ] {
            if let Some(found) = hint.filter(|&hint| hint < 0.0) {
                return Err(Fault::request(format!("{name}: expected 0 or more, found {found}")));
            }
        }
        let usual = if self.operation == "embedding" { "uint32" } else { "float32" };
        Dtype::parse(self.input_dtype.as_deref().unwrap_or(usual))
    }
}
