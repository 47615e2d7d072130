//! GGUF files whose keys are missing, wrong, or contradict the tensors; and the usual converter's, which are neither.

use std::path::{Path, PathBuf};

use tandem_formats::DType;
use tandem_formats::gguf::{GgufFile, Metadata, TensorDecl, Value, Writer};
use tandem_golden::golden_model;
use tandem_model::convert::{ConvertTypes, convert};
use tandem_model::{Checkpoint, PhimoeConfig};

use crate::scratch::Model;

/// A valid file, and the folder that copies with changes go to.
pub(crate) struct Gguf {
    pub(crate) model: Model,
    pub(crate) path: PathBuf,
}

impl Gguf {
    pub(crate) fn new(dtype: DType) -> Self {
        let model = Model::new();
        let path = model.save_gguf(dtype);
        Self { model, path }
    }

    /// Writes a copy with other keys and tensors. Tensors keep the bytes of their old name, cut or filled up with zeros.
    pub(crate) fn changed(
        &self,
        change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<TensorDecl>),
    ) -> PathBuf {
        let copy = self.model.file("bad.gguf");
        rewrite(&self.path, &copy, change);
        copy
    }

    /// The message for such a copy, without the file's name.
    fn refused(
        &self,
        change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<TensorDecl>),
    ) -> String {
        let message = self.model.message(Checkpoint::open(&self.changed(change)));
        message.strip_prefix("DIR/bad.gguf: ").expect("the file's name comes first").to_owned()
    }

    /// The message for a copy with one key set, or taken away.
    pub(crate) fn with_key(&self, key: &str, value: Option<Value>) -> String {
        self.refused(|keys, _| set(keys, key, value))
    }
}

pub(crate) fn set(keys: &mut Vec<(String, Value)>, key: &str, value: Option<Value>) {
    let place = keys.iter().position(|(k, _)| k == key);
    match (place, value) {
        (Some(i), Some(value)) => keys[i].1 = value,
        (Some(i), None) => drop(keys.remove(i)),
        (None, Some(value)) => keys.push((key.to_owned(), value)),
        (None, None) => panic!("no key {key}"),
    }
}

fn rewrite(
    from: &Path,
    to: &Path,
    change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<TensorDecl>),
) {
    let file = GgufFile::open(from).unwrap();
    let mut keys: Vec<_> = file.metadata().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    let mut tensors: Vec<_> = file
        .tensors()
        .values()
        .map(|t| TensorDecl { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() })
        .collect();
    change(&mut keys, &mut tensors);
    let mut metadata = Metadata::new();
    for (key, value) in keys {
        metadata.insert(key, value);
    }
    let mut writer = Writer::create(to, &metadata, &tensors).unwrap();
    for t in tensors {
        let mut bytes = file.read(&t.name).unwrap_or_default();
        bytes.resize(t.dtype.bytes_for(t.shape.iter().product()).unwrap(), 0);
        writer.write_tensor_data(&bytes).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn the_file_these_tests_spoil_is_valid() {
    let gguf = Gguf::new(DType::Q8_0);
    let hf = Checkpoint::open(gguf.model.path()).unwrap();
    let copy = gguf.changed(|_, _| {});
    for path in [&gguf.path, &copy] {
        assert_eq!(Checkpoint::open(path).unwrap().config(), hf.config());
    }
}

#[test]
fn other_architectures() {
    let gguf = Gguf::new(DType::F32);
    let key = "general.architecture";
    let refused = |value| gguf.with_key(key, value);
    assert_eq!(refused(None), "general.architecture: expected `phimoe`, found no such key");
    assert_eq!(
        refused(Some("llama".into())),
        "general.architecture: expected `phimoe`, found `llama`"
    );
    assert_eq!(
        refused(Some("a\nb".into())),
        "general.architecture: expected `phimoe`, found `a\\nb`"
    );
    assert_eq!(
        refused(Some(7u32.into())),
        "metadata `general.architecture`: expected string, found u32 7"
    );
    // That is what is said even where nothing else fits.
    let message = gguf.refused(|keys, tensors| {
        set(keys, key, Some("whisper".into()));
        tensors.truncate(1);
        tensors[0].name = "x".into();
    });
    assert_eq!(message, "general.architecture: expected `phimoe`, found `whisper`");
}

#[test]
fn numbers() {
    let gguf = Gguf::new(DType::F32);
    const SIZE: &str = "a whole number from 1 to 1048576";
    const COUNT: &str = "a whole number from 1 to 4096";
    for (key, expected, optional) in [
        ("phimoe.embedding_length", SIZE, false),
        ("phimoe.feed_forward_length", SIZE, false),
        ("phimoe.block_count", COUNT, false),
        ("phimoe.attention.head_count", SIZE, false),
        ("phimoe.expert_count", COUNT, false),
        ("phimoe.context_length", SIZE, false),
        ("phimoe.attention.head_count_kv", SIZE, true),
        ("phimoe.expert_used_count", SIZE, true),
        ("phimoe.attention.key_length", SIZE, true),
        ("phimoe.attention.value_length", SIZE, true),
        ("phimoe.expert_feed_forward_length", SIZE, true),
    ] {
        for value in [0u64, 1 << 21, u64::MAX] {
            assert_eq!(
                gguf.with_key(key, Some(value.into())),
                format!("{key}: expected {expected}, found {value}")
            );
        }
        for (value, found) in [
            (Value::from(-4i32), "i32 -4"),
            (Value::from(4.0f32), "f32 4"),
            (Value::from("4"), "string `4`"),
            (Value::from(true), "bool true"),
            (Value::from(vec![4u32, 4]), "array of 2 u32"),
        ] {
            assert_eq!(
                gguf.with_key(key, Some(value)),
                format!("metadata `{key}`: expected a non-negative integer, found {found}")
            );
        }
        if !optional {
            assert_eq!(
                gguf.with_key(key, None),
                format!("{key}: expected {expected}, found no such key")
            );
        }
    }
    assert_eq!(
        gguf.with_key("phimoe.expert_used_count", Some(4u32.into())),
        "phimoe.expert_used_count: expected 2, found 4"
    );
    assert_eq!(
        gguf.with_key("phimoe.attention.sliding_window", Some((1u64 << 40).into())),
        format!("phimoe.attention.sliding_window: expected {SIZE}, found 1099511627776")
    );
}

#[test]
fn constants() {
    let gguf = Gguf::new(DType::F32);
    for key in [
        "phimoe.rope.freq_base",
        "phimoe.attention.layer_norm_rms_epsilon",
        "phimoe.router_jitter_noise",
    ] {
        for (x, shown) in [(0f32, "0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
            assert_eq!(
                gguf.with_key(key, Some(x.into())),
                format!("{key}: expected a positive number, found {shown}")
            );
        }
        assert_eq!(
            gguf.with_key(key, Some(1u32.into())),
            format!("metadata `{key}`: expected f32, found u32 1")
        );
    }
}

#[test]
fn heads_and_shapes() {
    let gguf = Gguf::new(DType::F32);
    for (key, value, expected) in [
        (
            "phimoe.attention.head_count",
            3u32,
            "phimoe.attention.head_count: expected a divisor of attn_q's 64 rows, found 3",
        ),
        (
            "phimoe.attention.head_count",
            8,
            "phimoe.attention.key_length: expected 8, from attn_q's 64 rows, found 16",
        ),
        (
            "phimoe.attention.key_length",
            8,
            "phimoe.attention.key_length: expected 16, from attn_q's 64 rows, found 8",
        ),
        (
            "phimoe.attention.value_length",
            32,
            "phimoe.attention.value_length: expected 16, from attn_q's 64 rows, found 32",
        ),
        (
            "phimoe.attention.head_count_kv",
            3,
            "number of key/value heads: expected a divisor of the 4 query heads, found 3",
        ),
        (
            "phimoe.attention.head_count_kv",
            4,
            "tensor `blk.0.attn_k.weight` shape: expected [64, 32] as the config says, found [32, 32]",
        ),
        ("phimoe.expert_count", 1, "number of experts: expected at least 2, found 1"),
        (
            "phimoe.expert_count",
            3,
            "tensor `blk.0.ffn_gate_inp.weight` shape: expected [3, 32] as the config says, found [4, 32]",
        ),
        (
            "phimoe.embedding_length",
            64,
            "tensor `token_embd.weight` shape: expected [64, 64] as the config says, found [64, 32]",
        ),
        (
            "phimoe.feed_forward_length",
            64,
            "tensor `blk.0.ffn_gate_exps.weight` shape: expected [4, 64, 32] as the config says, found [4, 32, 32]",
        ),
        (
            "phimoe.block_count",
            3,
            "tensor `blk.2.attn_norm.weight`: expected to be there (the config asks for it), found no such tensor",
        ),
        (
            "phimoe.block_count",
            1,
            "tensor `blk.1.attn_norm.weight`: expected only layers below 1 as the config says, found layer 1",
        ),
    ] {
        assert_eq!(gguf.with_key(key, Some(value.into())), expected, "{key} {value}");
    }
}

#[test]
fn rope_scaling() {
    let gguf = Gguf::new(DType::F32);
    for kind in ["longrope", "linear", "yarn"] {
        assert_eq!(
            gguf.with_key("phimoe.rope.scaling.type", Some(kind.into())),
            format!("phimoe.rope.scaling.type: expected `none`, found `{kind}`")
        );
    }
    for name in ["rope_factors_long.weight", "rope_factors_short.weight"] {
        let message = gguf.refused(|_, tensors| {
            tensors.push(TensorDecl { name: name.into(), dtype: DType::F32, shape: vec![8] });
        });
        assert_eq!(
            message,
            format!("tensor `{name}`: expected no RoPE scaling, found scaling factors")
        );
    }
    let none = gguf.changed(|keys, _| set(keys, "phimoe.rope.scaling.type", Some("none".into())));
    Checkpoint::open(&none).unwrap();
}

#[test]
fn tensors() {
    let gguf = Gguf::new(DType::Q8_0);
    let names: Vec<_> = GgufFile::open(&gguf.path).unwrap().tensors().keys().cloned().collect();
    assert_eq!(names.len(), 5 + 2 * (13 + 3));
    for name in &names {
        let message = gguf.refused(|_, tensors| tensors.retain(|t| t.name != *name));
        let start = format!("tensor `{name}`: expected to be there");
        assert!(
            message.starts_with(&start) && message.ends_with("found no such tensor"),
            "{message}"
        );
    }
    let reshaped = |name: &str, shape: &[usize]| {
        gguf.refused(|_, tensors| {
            let tensor = tensors.iter_mut().find(|t| t.name == name).unwrap();
            tensor.shape = shape.to_vec();
        })
    };
    for stack in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
        for first in [3usize, 5] {
            assert_eq!(
                reshaped(&format!("blk.1.{stack}.weight"), &[first, 32, 32]),
                format!(
                    "tensor `blk.1.{stack}.weight` shape: expected [4, 32, 32] as the config says, found [{first}, 32, 32]"
                )
            );
        }
        assert_eq!(
            reshaped(&format!("blk.0.{stack}.weight"), &[32, 32]),
            format!(
                "tensor `blk.0.{stack}.weight` shape: expected [4, 32, 32] as the config says, found [32, 32]"
            )
        );
    }
    assert_eq!(
        reshaped("blk.0.attn_q.weight", &[2048]),
        "tensor `blk.0.attn_q.weight`: expected two dimensions, found [2048]"
    );
    assert_eq!(
        reshaped("output_norm.weight", &[1, 32]),
        "tensor `output_norm.weight` shape: expected [32] as the config says, found [1, 32]"
    );
    assert_eq!(
        reshaped("token_embd.weight", &[(1 << 20) + 1, 32]),
        "vocabulary: expected a whole number from 1 to 1048576, found 1048577"
    );
}

#[test]
fn special_ids_beyond_the_vocabulary() {
    let gguf = Gguf::new(DType::F32);
    let expected = "a token id below the vocabulary's size 64";
    assert_eq!(
        gguf.with_key("tokenizer.ggml.bos_token_id", Some(64u32.into())),
        format!("bos_token_id: expected {expected}, found 64")
    );
    assert_eq!(
        gguf.with_key("tandem.stop_token_ids", Some(vec![3i32, 100].into())),
        format!("eos_token_id: expected {expected}, found 100")
    );
}

/// The usual converter writes no key length, a wrong rope dimension and no jitter; none of that changes the model.
#[test]
fn files_of_the_usual_converter_are_accepted() {
    let hf = Checkpoint::open(&golden_model()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("ours.gguf"), dir.path().join("theirs.gguf"));
    let types = ConvertTypes { matrices: DType::Q4_0, output: DType::Q8_0 };
    convert(&hf, &ours, types, |_| true).unwrap();
    rewrite(&ours, &theirs, |keys, _| {
        for key in [
            "phimoe.attention.key_length",
            "phimoe.attention.value_length",
            "phimoe.router_jitter_noise",
            "phimoe.vocab_size",
            "tandem.stop_token_ids",
        ] {
            set(keys, key, None);
        }
        // hidden / heads.
        set(keys, "phimoe.rope.dimension_count", Some(16u32.into()));
    });
    let expected = PhimoeConfig { router_jitter: 0.01, ..hf.config().clone() };
    assert_eq!(expected.head_dim, 32);
    for path in [ours, theirs] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(*checkpoint.config(), expected);
        assert_eq!(checkpoint.special_ids().stop, [500]);
    }
}
