//! Safetensors files of a model folder: tensors that are missing, misshapen, of the wrong type or not finite, and
//! files that are cut or lie about themselves.

use half::{bf16, f16};
use tandem_formats::DType;
use tandem_formats::safetensors::Dtype;
use tandem_model::catalogue::LayerTensor;
use tandem_model::convert::{ConvertTypes, convert};
use tandem_model::{Checkpoint, TensorId, reference};

use crate::scratch::{Model, Tensor};

const FILE: &str = "model.safetensors";

/// The message for a model with one tensor changed.
fn with(name: &str, change: impl FnOnce(&mut Tensor)) -> String {
    let mut model = Model::new();
    change(model.tensor(name));
    model.save();
    model.refused()
}

#[test]
fn missing_tensors() {
    let mut model = Model::new();
    for missing in 0..model.tensors.len() {
        let tensor = model.tensors.remove(missing);
        let name = &tensor.name;
        model.save();
        assert_eq!(
            model.refused(),
            format!(
                "DIR: tensor `{name}`: expected to be there (the config asks for it), found no such tensor"
            )
        );
        model.tensors.insert(missing, tensor);
    }
}

#[test]
fn shapes_that_contradict_the_config() {
    for (key, value, tensor, expected, found) in [
        ("vocab_size", 65, "model.embed_tokens.weight", "[65, 32]", "[64, 32]"),
        ("hidden_size", 64, "model.embed_tokens.weight", "[64, 64]", "[64, 32]"),
        ("head_dim", 32, "model.layers.0.self_attn.q_proj.weight", "[128, 32]", "[64, 32]"),
        (
            "num_key_value_heads",
            1,
            "model.layers.0.self_attn.k_proj.weight",
            "[16, 32]",
            "[32, 32]",
        ),
        (
            "num_local_experts",
            5,
            "model.layers.0.block_sparse_moe.gate.weight",
            "[5, 32]",
            "[4, 32]",
        ),
        (
            "num_local_experts",
            3,
            "model.layers.0.block_sparse_moe.gate.weight",
            "[3, 32]",
            "[4, 32]",
        ),
        (
            "intermediate_size",
            16,
            "model.layers.0.block_sparse_moe.experts.0.w1.weight",
            "[16, 32]",
            "[32, 32]",
        ),
    ] {
        let mut model = Model::new();
        model.config[key] = value.into();
        model.save();
        assert_eq!(
            model.refused(),
            format!(
                "DIR/{FILE}: tensor `{tensor}` shape: expected {expected} as the config says, found {found}"
            )
        );
    }
    for shape in [vec![2048], vec![32, 64], vec![1, 64, 32], vec![64, 32, 1]] {
        assert_eq!(
            with("model.embed_tokens.weight", |t| t.shape.clone_from(&shape)),
            format!(
                "DIR/{FILE}: tensor `model.embed_tokens.weight` shape: expected [64, 32] as the config says, found {shape:?}"
            )
        );
    }
    assert_eq!(
        with("model.norm.bias", |t| t.shape = vec![1, 32]),
        format!(
            "DIR/{FILE}: tensor `model.norm.bias` shape: expected [32] as the config says, found [1, 32]"
        )
    );
}

/// Cut off, a model would still compute something.
#[test]
fn layers_beyond_those_of_the_config() {
    let mut model = Model::new();
    model.config["num_hidden_layers"] = 1.into();
    model.save();
    assert_eq!(
        model.refused(),
        format!(
            "DIR/{FILE}: tensor `model.layers.1.input_layernorm.weight`: expected only layers below 1 as the config says, found layer 1"
        )
    );
}

#[test]
fn types_that_are_no_weights() {
    let name = "model.layers.1.self_attn.v_proj.weight";
    for dtype in
        [Dtype::I8, Dtype::U8, Dtype::I32, Dtype::I64, Dtype::F64, Dtype::BOOL, Dtype::F8_E4M3]
    {
        let message = with(name, |t| {
            t.dtype = dtype;
            t.data = vec![0; 32 * 32 * dtype.size()];
        });
        assert_eq!(
            message,
            format!(
                "DIR/{FILE}: tensor `{name}` type: expected F32, F16 or BF16, found {}",
                dtype.name()
            )
        );
    }
}

#[test]
fn a_cut_file() {
    let model = Model::new();
    model.save();
    let whole = std::fs::read(model.file(FILE)).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    let boundaries =
        [0, 1, 7, 8, 9, header - 1, header, header + 1, whole.len() - 4, whole.len() - 1];
    let evenly = (0..200).map(|i| i * whole.len() / 200);
    for len in boundaries.into_iter().chain(evenly) {
        model.put(FILE, &whole[..len]);
        let message = model.refused();
        let expected = match len {
            0..8 => format!("header length: expected 8 bytes, found a file of {len} bytes"),
            _ if len < header => {
                format!(
                    "header length: expected at most {} in a file of {len} bytes, found {}",
                    len - 8,
                    header - 8
                )
            }
            _ => {
                // Which tensor it is depends on the order in the file.
                let end =
                    format!("expected an end within the {} bytes of data, found ", len - header);
                assert!(message.contains(&end), "{message}");
                continue;
            }
        };
        assert_eq!(message, format!("DIR/{FILE}: {expected}"));
    }
}

#[test]
fn a_header_that_lies() {
    let model = Model::new();
    model.save();
    let whole = std::fs::read(model.file(FILE)).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        model.put(FILE, bytes);
        assert_eq!(model.refused(), format!("DIR/{FILE}: {expected}"));
    };
    for len in [1u64 << 62, u64::MAX, 100_000_001] {
        refused(
            &|b| b[..8].copy_from_slice(&len.to_le_bytes()),
            &format!(
                "header length: expected at most {} in a file of {} bytes, found {len}",
                whole.len() - 8,
                whole.len()
            ),
        );
    }
    refused(
        &|b| b.push(0),
        &format!(
            "tensor data: expected {0} bytes, as the tensors in the header add up to, found {1} bytes",
            data_len(&whole),
            data_len(&whole) + 1
        ),
    );
    // The bias of lm_head takes the place of the tensor after it, of the same size.
    let text = String::from_utf8(whole[8..].iter().take_while(|b| **b != 0).copied().collect());
    let text = text.unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
    let offsets = |name: &str| {
        let entry = &text[text.find(&format!("\"{name}\"")).unwrap()..];
        let start = entry.find("data_offsets\":[").unwrap() + "data_offsets\":[".len();
        entry[start..].split(']').next().unwrap().to_owned()
    };
    let (first, second) = (
        offsets("model.layers.0.self_attn.k_proj.weight"),
        offsets("model.layers.0.self_attn.v_proj.weight"),
    );
    assert_eq!(first.len(), second.len());
    let at = whole.windows(second.len()).position(|w| w == second.as_bytes()).unwrap();
    let message = {
        let mut bytes = whole.clone();
        bytes[at..at + first.len()].copy_from_slice(first.as_bytes());
        model.put(FILE, bytes);
        model.refused()
    };
    let expected = format!(
        "expected a start at {}, where the tensor before ends, found",
        first.split(',').nth(1).unwrap()
    );
    assert!(message.contains(&expected), "{message}");
}

fn data_len(file: &[u8]) -> usize {
    file.len() - 8 - usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap()
}

/// A weight that is not finite is named with its row and column, whoever reads it.
#[test]
fn weights_that_are_not_finite() {
    let name = "model.layers.1.self_attn.k_proj.weight";
    let id = TensorId::Layer(1, LayerTensor::KWeight);
    let (row, col) = (13, 21);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let mut model = Model::new();
            let tensor = model.tensor(name);
            *tensor = tensor.clone().encoded(dtype, |x| encode(dtype, x));
            let at = (row * 32 + col) * dtype.size();
            tensor.data[at..at + dtype.size()].copy_from_slice(&encode(dtype, value));
            model.save();
            let checkpoint = Checkpoint::open(model.path()).unwrap();
            let expected = format!(
                "DIR/{FILE}: tensor `{name}`: expected finite weights, found NaN or infinity at row {row}, column {col}"
            );
            assert_eq!(model.message(checkpoint.read_f32(id)), expected);

            let mut rows = vec![0; 2 * checkpoint.entry(id).row_bytes()];
            assert_eq!(
                model.message(checkpoint.read_rows(id, row - 1..row + 1, &mut rows)),
                expected
            );
            checkpoint.read_rows(id, row + 1..row + 3, &mut rows).unwrap();

            assert_eq!(model.message(reference::forward(&checkpoint, &[1, 2])), expected);
            let types = ConvertTypes { matrices: DType::Q8_0, output: DType::Q8_0 };
            let out = model.file("out.gguf");
            assert_eq!(model.message(convert(&checkpoint, &out, types, |_| true)), expected);
            assert!(!out.exists());
        }
    }
}

fn encode(dtype: Dtype, x: f32) -> Vec<u8> {
    match dtype {
        Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    }
}

/// Headers are read once. A file that shrinks afterwards is an error where its weights are read.
#[test]
fn a_file_that_shrinks_after_opening() {
    let model = Model::new();
    model.save();
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    std::fs::OpenOptions::new().write(true).open(model.file(FILE)).unwrap().set_len(5000).unwrap();
    let message = model.message(checkpoint.read_f32(TensorId::LmHeadWeight));
    assert!(
        message.starts_with(&format!("DIR/{FILE}: cannot read 8192 bytes at offset ")),
        "{message}"
    );
}
