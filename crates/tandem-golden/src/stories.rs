//! The demo model's bf16 weights, put together from the demo model itself and a file of corrections.
//!
//! The reference ran on bf16 weights, 35 MB. The repository ships them in fewer bits, and next to them what each
//! weight is off by, counted in representable bf16 numbers and deflated: 28 % of the size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use half::bf16;
use tandem_formats::blocks;
use tandem_formats::gguf::GgufFile;
use tandem_formats::safetensors::{Dtype, SafetensorsFile, Tensor, write};
use tandem_testkit::{build_once, testdata};

const DEMO: &str = "../models/stories/stories-17m.gguf";
const CORRECTIONS: &str = "stories/bf16-corrections.z";
const SMALL_FILES: [&str; 4] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];

/// The folder of the demo model in bf16, as `transformers` had it. Made once, under `target`.
pub fn stories_bf16() -> PathBuf {
    build_once("stories-bf16", &[testdata(DEMO), testdata(CORRECTIONS)], |folder| {
        let demo = GgufFile::open(&testdata(DEMO)).expect("demo model");
        let packed = File::open(testdata(CORRECTIONS)).expect("corrections");
        let mut corrections = Vec::new();
        ZlibDecoder::new(packed).read_to_end(&mut corrections).expect("corrections");
        let layout = layout(&demo);
        let n: usize = layout.iter().map(|t| t.shape.iter().product::<usize>()).sum();
        assert_eq!(corrections.len(), 2 * n, "corrections are of another demo model");
        let (low, high) = corrections.split_at(n);
        let mut at = 0;
        let mut data = Vec::new();
        for tensor in &layout {
            let bytes = tensor.predicted(&demo).into_iter().flat_map(|predicted| {
                let zigzag = u16::from_le_bytes([low[at], high[at]]);
                at += 1;
                from_ordered(predicted.wrapping_add(un_zigzag(zigzag))).to_le_bytes()
            });
            data.push(bytes.collect::<Vec<u8>>());
        }
        let tensors: Vec<_> = layout
            .iter()
            .zip(&data)
            .map(|(t, data)| Tensor { name: &t.hf_name, dtype: Dtype::BF16, shape: &t.shape, data })
            .collect();
        write(&folder.join("model.safetensors"), &tensors, &BTreeMap::new()).expect("bf16 model");
        for name in SMALL_FILES {
            std::fs::copy(testdata("stories").join(name), folder.join(name)).expect("small files");
        }
    })
}

/// The same model with a longer context and no stop ids, so that a text goes on until it is interrupted.
///
/// # Panics
/// Where the model cannot be made.
pub fn stories_endless() -> PathBuf {
    let original = stories_bf16();
    build_once("stories-long", &[original.join("config.json")], |folder| {
        for entry in std::fs::read_dir(&original).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        let config = std::fs::read_to_string(original.join("config.json")).unwrap();
        let longer =
            config.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 4096");
        assert_ne!(config, longer);
        std::fs::write(folder.join("config.json"), longer).unwrap();
        std::fs::write(folder.join("generation_config.json"), "{}").unwrap();
    })
}

/// Writes the corrections that turn the demo model `gguf` into the bf16 weights of `original`. For `cargo xtask`,
/// when the demo model is made anew.
///
/// # Panics
/// Where the two are not the same model.
pub fn write_corrections(original: &Path, gguf: &Path, out: &Path) {
    let original = SafetensorsFile::open(original).expect("original weights");
    let demo = GgufFile::open(gguf).expect("demo model");
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for tensor in layout(&demo) {
        let bytes = original.read(&tensor.hf_name).expect("original weights");
        let exact = bytes.chunks_exact(2).map(|b| to_ordered(u16::from_le_bytes([b[0], b[1]])));
        for (exact, predicted) in exact.zip(tensor.predicted(&demo)) {
            let [l, h] = zigzag(exact.wrapping_sub(predicted)).to_le_bytes();
            low.push(l);
            high.push(h);
        }
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&low).and_then(|()| encoder.write_all(&high)).expect("in memory");
    std::fs::write(out, encoder.finish().expect("in memory")).expect("corrections");
}

/// A tensor of the HF checkpoint and where it lies in the GGUF file.
struct Placed {
    hf_name: String,
    shape: Vec<usize>,
    gguf_name: String,
    /// Which of the stacked experts.
    expert: usize,
}

impl Placed {
    /// The GGUF file's weights rounded to bf16, as ordered numbers.
    fn predicted(&self, demo: &GgufFile) -> Vec<u16> {
        let info = &demo.tensors()[&self.gguf_name];
        let bytes = demo.read(&self.gguf_name).expect("demo model");
        let n = self.shape.iter().product::<usize>();
        let size = info.dtype.bytes_for(n).expect("whole blocks");
        let mut weights = vec![0.0; n];
        blocks::dequantize(info.dtype, &bytes[self.expert * size..][..size], &mut weights);
        weights.into_iter().map(|w| to_ordered(bf16::from_f32(w).to_bits())).collect()
    }
}

/// Every tensor of the model, from the names in the GGUF file.
fn layout(demo: &GgufFile) -> Vec<Placed> {
    let mut all = Vec::new();
    for (name, info) in demo.tensors() {
        let (hf_name, stacked) = hf_name(name);
        if !stacked {
            all.push(Placed {
                hf_name,
                shape: info.shape.clone(),
                gguf_name: name.clone(),
                expert: 0,
            });
            continue;
        }
        for expert in 0..info.shape[0] {
            all.push(Placed {
                hf_name: hf_name.replace("{}", &expert.to_string()),
                shape: info.shape[1..].to_vec(),
                gguf_name: name.clone(),
                expert,
            });
        }
    }
    all
}

/// The HF name of a GGUF tensor, with `{}` for the expert, and whether experts are stacked in it.
fn hf_name(gguf: &str) -> (String, bool) {
    let (stem, kind) = gguf.rsplit_once('.').expect("a tensor name");
    let plain = match stem {
        "token_embd" => "model.embed_tokens",
        "output_norm" => "model.norm",
        "output" => "lm_head",
        _ => {
            let (layer, tail) =
                stem.trim_start_matches("blk.").split_once('.').expect("a layer's tensor");
            let (tail, stacked) = match tail {
                "attn_norm" => ("input_layernorm", false),
                "ffn_norm" => ("post_attention_layernorm", false),
                "attn_q" => ("self_attn.q_proj", false),
                "attn_k" => ("self_attn.k_proj", false),
                "attn_v" => ("self_attn.v_proj", false),
                "attn_output" => ("self_attn.o_proj", false),
                "ffn_gate_inp" => ("block_sparse_moe.gate", false),
                "ffn_gate_exps" => ("block_sparse_moe.experts.{}.w1", true),
                "ffn_up_exps" => ("block_sparse_moe.experts.{}.w3", true),
                "ffn_down_exps" => ("block_sparse_moe.experts.{}.w2", true),
                other => panic!("unexpected tensor {other}"),
            };
            return (format!("model.layers.{layer}.{tail}.{kind}"), stacked);
        }
    };
    (format!("{plain}.{kind}"), false)
}

/// bf16 bits as a number that grows with the value.
fn to_ordered(bits: u16) -> u16 {
    if bits & 0x8000 == 0 { bits | 0x8000 } else { !bits }
}

fn from_ordered(ordered: u16) -> u16 {
    if ordered & 0x8000 == 0 { !ordered } else { ordered & 0x7fff }
}

/// Small differences of either sign as small numbers.
fn zigzag(difference: u16) -> u16 {
    let signed = difference.cast_signed();
    ((signed << 1) ^ (signed >> 15)).cast_unsigned()
}

fn un_zigzag(n: u16) -> u16 {
    (n >> 1) ^ (n & 1).wrapping_neg()
}
