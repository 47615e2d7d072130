//! From a work packet to an operation, and from what came of it to an answer.

use tandem_memory::KvType;
use tandem_model::PhimoeConfig;
use tandem_runtime::partition::operations_named;
use tandem_runtime::plan::Placement;
use tandem_runtime::{
    Executor, Operation, OperationInput, OperationRequest, OperationResult, OperationShape,
    RuntimeError,
};

use crate::protocol::{
    Answer, DeviceTarget, Dtype, Fault, MAX_TENSOR_BYTES, PacketResult, Tensor, TensorSource,
    WorkPacket,
};
use crate::tensor_bytes;

/// The most tokens of any packet, before the executor's own limit is asked: what is made for a probe must be bounded.
const MAX_TOKENS: usize = 4096;

/// A packet that has been checked.
pub(crate) struct Prepared {
    operations: Vec<Operation>,
    layer: usize,
    sequences: usize,
    tokens: usize,
    input: Tensor,
    source: TensorSource,
    output_shape: Vec<usize>,
    experts: Option<Vec<[u32; 2]>>,
    weights: Option<Vec<[f32; 2]>>,
    placement: Option<Placement>,
}

impl Prepared {
    /// Checks everything that does not need the executor.
    ///
    /// # Errors
    /// Names the field.
    pub(crate) fn new(
        packet: &WorkPacket,
        frame: Option<Vec<u8>>,
        config: &PhimoeConfig,
    ) -> Result<Self, Fault> {
        let dtype = packet.check()?;
        let operations = operations_named(&packet.operation);
        if operations.is_empty() {
            let names = Operation::ALL.map(Operation::name).join(", ");
            let found: String = packet.operation.chars().take(64).collect();
            return Err(Fault::request(format!(
                "operation: found {found:?}, expected one of {names}, position_encoding, expert_masking, expert_ffn"
            )));
        }
        let is_ids = operations[0] == Operation::Embedding;
        if is_ids != dtype.is_whole() {
            let (name, found) = (&packet.operation, dtype.name());
            let expected = if is_ids { "a type of whole numbers" } else { "a floating-point type" };
            return Err(Fault::request(format!(
                "input_dtype: expected {expected} for {name}, found {found}"
            )));
        }
        let layer = match packet.layer_idx {
            None if operations[0].is_of_layers() => {
                let name = &packet.operation;
                return Err(Fault::request(format!("layer_idx is missing: {name} is of layers")));
            }
            layer => layer.unwrap_or(0),
        };
        let shape = OperationShape::of(&operations, config);
        let leading = leading(packet, &shape)?;
        let (sequences, tokens) = counts(leading)?;
        let output_shape: Vec<usize> = leading.iter().chain(&shape.output).copied().collect();
        let count = sequences * tokens;
        let (input, source) = match frame {
            Some(frame) => {
                check_output(&output_shape)?;
                (Tensor::read(&frame, dtype, count * shape.input_len())?, TensorSource::Tensor)
            }
            None => {
                let input = synthetic(&operations, count, shape.input_len(), config);
                (input, TensorSource::Synthetic)
            }
        };
        let params = packet.params.clone().unwrap_or_default();
        let placement = match packet.device_target {
            DeviceTarget::Cpu => Some(Placement::Cpu),
            DeviceTarget::Igpu => Some(Placement::Igpu),
            DeviceTarget::Auto => None,
        };
        let (experts, weights) = (params.experts, params.expert_weights);
        Ok(Self {
            operations,
            layer,
            sequences,
            tokens,
            input,
            source,
            output_shape,
            experts,
            weights,
            placement,
        })
    }

    pub(crate) fn output_shape(&self) -> &[usize] {
        &self.output_shape
    }

    pub(crate) fn source(&self) -> TensorSource {
        self.source
    }

    /// Runs it.
    ///
    /// # Errors
    /// As [`Executor::run_operation`].
    pub(crate) fn run(
        &self,
        executor: &mut Executor,
        kv_type: KvType,
    ) -> Result<OperationResult, RuntimeError> {
        executor.run_operation(&OperationRequest {
            operations: &self.operations,
            layer: self.layer,
            sequences: self.sequences,
            tokens: self.tokens,
            input: match &self.input {
                Tensor::Ids(ids) => OperationInput::Ids(ids),
                Tensor::Numbers(rows) => OperationInput::Rows(rows),
            },
            experts: self.experts.as_deref(),
            weights: self.weights.as_deref(),
            kv_type,
            placement: self.placement,
        })
    }
}

/// The dimensions before those of the operation.
fn leading<'a>(packet: &'a WorkPacket, shape: &OperationShape) -> Result<&'a [usize], Fault> {
    let found = &packet.input_shape;
    found.strip_suffix(&shape.input[..]).ok_or_else(|| {
        let (name, expected) = (&packet.operation, &shape.input);
        Fault::request(format!(
            "input_shape: expected any numbers of sequences and tokens and then {expected:?} for {name}, found {found:?}"
        ))
    })
}

/// Sequences, and tokens of each.
fn counts(leading: &[usize]) -> Result<(usize, usize), Fault> {
    let (&tokens, sequences) = leading.split_last().unwrap_or((&1, &[]));
    let product = |dimensions: &[usize]| {
        dimensions.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension))
    };
    let sequences = product(sequences);
    let all = sequences.and_then(|sequences| sequences.checked_mul(tokens));
    match (sequences, all) {
        (Some(sequences), Some(1..=MAX_TOKENS)) => Ok((sequences, tokens)),
        _ => Err(Fault::request(format!(
            "input_shape: expected 1 to {MAX_TOKENS} tokens, found {leading:?}"
        ))),
    }
}

/// Whether the output fits a frame.
fn check_output(shape: &[usize]) -> Result<(), Fault> {
    let bytes = shape.iter().fold(size_of::<f32>(), |bytes, &d| bytes.saturating_mul(d));
    match bytes <= MAX_TENSOR_BYTES {
        true => Ok(()),
        false => Err(Fault::request(format!(
            "input_shape: the output {shape:?} would take {bytes} bytes, expected at most {MAX_TENSOR_BYTES}: send fewer \
             tokens, or no tensor to measure only"
        ))),
    }
}

/// Numbers to measure with: as activations after a LayerNorm are, about normally distributed. Always the same ones.
fn synthetic(operations: &[Operation], tokens: usize, width: usize, c: &PhimoeConfig) -> Tensor {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    // Xorshift (Marsaglia 2003): that it is fast is all that matters.
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    if operations[0] == Operation::Embedding {
        return Tensor::Ids((0..tokens).map(|_| (next() % c.vocab_size as u64) as u32).collect());
    }
    let unit = 1.0 / (1u64 << 32) as f32;
    if operations[0] == Operation::ExpertDispatch {
        let expert = |choice: usize| (choice % c.n_experts) as f32;
        let row = |token: usize| [expert(2 * token), expert(2 * token + 1), 0.5, 0.5];
        return Tensor::Numbers((0..tokens).flat_map(row).collect());
    }
    // The sum of four uniform numbers.
    let mut normal = || (0..4).map(|_| (next() >> 32) as f32 * unit - 0.5).sum::<f32>() * 1.7;
    Tensor::Numbers((0..tokens * width).map(|_| normal()).collect())
}

/// What a client is told of a packet.
pub(crate) fn answer(
    packet: &WorkPacket,
    input: TensorSource,
    output_shape: Vec<usize>,
    result: OperationResult,
) -> Answer {
    let numbers = packet.input_shape.iter().product::<usize>() + result.output.len();
    let bytes = result.bytes as f64 + (numbers * size_of::<f32>()) as f64;
    let told = PacketResult {
        packet_id: packet.packet_id.clone(),
        success: true,
        input,
        output_shape,
        output_dtype: Dtype::F32.name().to_owned(),
        output_data_ptr: serde_json::Value::Null,
        actual_duration_ms: result.time.as_secs_f64() * 1e3,
        device_used: match result.placement {
            Placement::Cpu => "cpu",
            Placement::Igpu => "igpu",
            Placement::Split(_) | Placement::Experts(_) => "split",
        }
        .to_owned(),
        memory_used_mb: bytes / 1e6,
        error_message: result.gpu_failure,
    };
    let mut answer = Answer::new("success", "work_packet").with("result", told);
    if input == TensorSource::Tensor {
        answer.tensor = Some(tensor_bytes(&result.output));
    }
    answer
}
