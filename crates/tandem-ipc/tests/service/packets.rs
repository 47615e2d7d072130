//! Work packets. That operations compute what they should is tested in tandem-runtime; here, that rows get there and back.

use half::{bf16, f16};
use serde_json::{Value, json};
use tandem_golden::stories_bf16;
use tandem_model::Checkpoint;
use tandem_runtime::{Operation, OperationShape};
use tandem_testkit::Rng;

use crate::support::{Peer, Running};

fn packet(operation: &str, shape: &[usize], more: Value) -> Value {
    let mut data = json!({
        "packet_id": "p", "layer_idx": 1, "operation": operation, "input_shape": shape, "priority": 0,
        "input_data_ptr": null, "can_pipeline": true, "memory_requirement_mb": 1.5, "estimated_duration_ms": 0.5,
    });
    data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"type": "work_packet", "data": data})
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn numbers(tensor: &[u8]) -> Vec<f32> {
    tensor.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)).collect()
}

fn ok(peer: &Peer, message: &Value, tensor: Option<&[u8]>) -> (Value, Option<Vec<u8>>) {
    match tensor {
        Some(tensor) => peer.send_with(message, tensor),
        None => peer.send(message),
    }
    let (answer, output) = peer.receive();
    assert_eq!(answer["status"], "success", "{answer}");
    (answer["result"].clone(), output)
}

#[test]
fn every_operation_runs_on_tensors_and_as_a_probe() {
    let server = Running::start();
    let config = Checkpoint::open(&stories_bf16()).unwrap().config().clone();
    let mut rng = Rng::new(7);
    let groups = ["position_encoding", "expert_masking", "expert_ffn"];
    for peer in [server.req(), server.dealer()] {
        for name in Operation::ALL.map(Operation::name).into_iter().chain(groups) {
            let operations = tandem_runtime::partition::operations_named(name);
            let shape = OperationShape::of(&operations, &config);
            let leading = [2, 3];
            let input_shape = [&leading[..], &shape.input].concat();
            let count: usize = input_shape.iter().product();
            let (tensor, dtype) = match name {
                "embedding" => ((0..count as i64).flat_map(i64::to_le_bytes).collect(), "int64"),
                "expert_dispatch" => (bytes(&[3.0, 1.0, 0.5, 0.25].repeat(count / 4)), "float32"),
                _ => (bytes(&(0..count).map(|_| rng.normal()).collect::<Vec<_>>()), "float32"),
            };
            let message = packet(name, &input_shape, json!({"input_dtype": dtype}));
            let (result, output) = ok(&peer, &message, Some(&tensor));
            let expected = [&leading[..], &shape.output].concat();
            assert_eq!(result["output_shape"], json!(expected), "{name}");
            let output = output.expect("an output");
            assert_eq!(output.len(), 4 * expected.iter().product::<usize>(), "{name}");
            assert!(numbers(&output).iter().all(|x| x.is_finite()), "{name}");
            assert_eq!(
                (&result["input"], &result["device_used"]),
                (&json!("tensor"), &json!("cpu"))
            );
            assert!(result["actual_duration_ms"].as_f64().unwrap() > 0.0, "{name}");
            assert!(result["memory_used_mb"].as_f64().unwrap() > 0.0, "{name}");
            let (probe, nothing) = ok(&peer, &message, None);
            assert_eq!(probe["input"], "synthetic", "{name}");
            assert_eq!(probe["output_shape"], result["output_shape"], "{name}");
            assert!(nothing.is_none(), "{name}");
        }
    }
}

#[test]
fn halves_are_taken_for_what_they_are() {
    let server = Running::start();
    let peer = server.req();
    let hidden = Checkpoint::open(&stories_bf16()).unwrap().config().hidden_size;
    // Numbers that all three types have.
    let x: Vec<f32> = (0..2 * hidden).map(|n| (n % 64) as f32 - 32.0).collect();
    let f16s: Vec<u8> = x.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
    let bf16s: Vec<u8> = x.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    let run = |dtype: &str, tensor: &[u8]| {
        let message = packet("router_logits", &[2, hidden], json!({"input_dtype": dtype}));
        ok(&peer, &message, Some(tensor)).1.unwrap()
    };
    let expected = run("float32", &bytes(&x));
    assert_eq!(run("float16", &f16s), expected);
    assert_eq!(run("bfloat16", &bf16s), expected);
    assert_eq!(run("bf16", &bf16s), expected);
    // And one token without a dimension for it.
    let message = packet("router_logits", &[hidden], json!({}));
    let (result, output) = ok(&peer, &message, Some(&bytes(&x[..hidden])));
    assert_eq!(result["output_shape"].as_array().unwrap().len(), 1);
    assert_eq!(output.unwrap(), expected[..expected.len() / 2]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let server = Running::start();
    let peer = server.dealer();
    let config = Checkpoint::open(&stories_bf16()).unwrap().config().clone();
    let (hidden, layers) = (config.hidden_size, config.n_layers);
    let x = bytes(&vec![1.0; 2 * hidden]);
    let shape = [2, hidden];
    let cases = [
        (
            packet("moe_layernorm", &shape, json!({"input_data_ptr": 140_735_340_871_680_u64})),
            "input_data_ptr: expected null: a pointer of another process cannot be followed",
        ),
        (packet("moe_layernorm", &[3, hidden], json!({})), "the tensor frame: expected "),
        (
            packet("moe_layernorm", &[2, hidden + 1], json!({})),
            "input_shape: expected any numbers of sequences and tokens and then [",
        ),
        (
            packet("moe_layernorm", &[0, hidden], json!({})),
            "input_shape: expected 1 to 4096 tokens, found [0]",
        ),
        (
            packet("moe_layernorm", &[usize::MAX, usize::MAX, hidden], json!({})),
            "input_shape: expected 1 to 4096 tokens",
        ),
        (
            packet("moe_layernorm", &[1; 9], json!({})),
            "input_shape: expected 1 to 8 dimensions, found 9",
        ),
        (
            packet("moe_layernorm", &shape, json!({"layer_idx": layers})),
            "layer_idx: expected less than ",
        ),
        (
            packet("moe_layernorm", &shape, json!({"layer_idx": null})),
            "layer_idx is missing: moe_layernorm is of layers",
        ),
        (
            packet("moe_layernorm", &shape, json!({"device_target": "igpu"})),
            "device_target: expected cpu or auto, found igpu, which does not compute moe_layernorm: no GPU takes part",
        ),
        (
            packet("moe_layernorm", &shape, json!({"device_target": "npu"})),
            "work_packet: unknown variant `npu`, expected one of `cpu`, `igpu`, `auto`",
        ),
        (
            packet("moe_layernorm", &shape, json!({"input_dtype": "float64"})),
            "input_dtype: expected one of float32, float16",
        ),
        (
            packet("moe_layernorm", &shape, json!({"input_dtype": "int64"})),
            "input_dtype: expected a floating-point type for moe_layernorm, found int64",
        ),
        (
            packet("embedding", &[4], json!({"input_dtype": "float32"})),
            "input_dtype: expected a type of whole numbers for embedding, found float32",
        ),
        (
            packet("softmax", &shape, json!({})),
            "operation: found \"softmax\", expected one of embedding, attention_layernorm",
        ),
        (
            packet("moe_layernorm", &shape, json!({"packet_id": null})),
            "packet_id: expected a string or a number",
        ),
        (
            packet("moe_layernorm", &shape, json!({"memory_requirement_mb": -1})),
            "memory_requirement_mb: expected 0 or more, found -1",
        ),
        (
            packet("expert_ffn_w1", &shape, json!({"params": {"experts": [[0, 1]]}})),
            "experts: expected 2, one for each token, found 1",
        ),
        (
            packet("expert_ffn_w1", &shape, json!({"params": {"experts": [[0, 1], [0, 99]]}})),
            "experts: expected less than ",
        ),
        (
            packet("expert_ffn_w1", &shape, json!({"params": {"expert": 1}})),
            "work_packet: unknown field `expert`",
        ),
        (packet("moe_layernorm", &[64, 2, hidden], json!({})), "the tensor frame: expected "),
    ];
    for (message, expected) in cases {
        let json = message.to_string();
        let found = peer.error(&[json.as_bytes(), &x]);
        assert!(found.starts_with(expected) && !found.contains('\n'), "{found}");
    }
    // More tokens than a batch has.
    let probe = packet("moe_layernorm", &[65, hidden], json!({})).to_string();
    assert_eq!(peer.error(&[probe.as_bytes()]), "input_shape: expected 1 to 64 tokens, found 65");
    let mut infinite = x.clone();
    infinite[4..8].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let message = packet("moe_layernorm", &shape, json!({})).to_string();
    assert_eq!(
        peer.error(&[message.as_bytes(), &infinite]),
        "the tensor frame: expected finite numbers, found inf at 1"
    );
    assert!(ok(&peer, &packet("moe_layernorm", &shape, json!({})), Some(&x)).1.is_some());
}
