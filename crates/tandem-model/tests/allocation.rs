//! A file that lies about its size costs no more memory than its size justifies.
//!
//! One test, in a program of its own: the allocator counts for the whole process.

use std::fs;
use std::path::Path;

use peak_alloc::PeakAlloc;
use serde_json::json;
use tandem_model::Checkpoint;
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What messages, buffers and parsers may take whatever the file.
const FIXED: usize = 1 << 20;

/// Opens a file or folder, which must be refused with `message` in its error; returns the most memory in use
/// meanwhile beyond what was in use before.
fn peak_of_opening(path: &Path, message: &str) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let error = Checkpoint::open(path).err().expect("refused").to_string();
    let peak = ALLOCATOR.peak_usage() - before;
    assert!(error.contains(message) && !error.contains('\n'), "{error}");
    peak
}

/// Opens `file` with that content and checks the memory it took.
fn bounded(file: &Path, content: &[u8], message: &str) {
    fs::write(file, content).unwrap();
    let peak = peak_of_opening(file, message);
    assert!(peak <= content.len() + FIXED, "{peak} bytes for {} bytes: {message}", content.len());
}

#[test]
fn lies_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    gguf_files(&dir.path().join("m.gguf"));
    folders(&dir);
    large_but_honest(&dir.path().join("m.gguf"));
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

/// A header with those counts, and what follows it.
fn gguf(n_tensors: u64, n_keys: u64, rest: &[Vec<u8>]) -> Vec<u8> {
    let head = [&b"GGUF\x03\0\0\0"[..], &n_tensors.to_le_bytes(), &n_keys.to_le_bytes()].concat();
    [head, rest.concat(), vec![0; 64]].concat()
}

fn gguf_files(file: &Path) {
    const ARRAY: u32 = 9;
    let array = |kind: u32, len: u64| {
        let lengths = [&ARRAY.to_le_bytes()[..], &kind.to_le_bytes(), &len.to_le_bytes()].concat();
        gguf(0, 1, &[text("k"), lengths])
    };
    for exponent in [20, 40, 60, 62, 63] {
        let n = 1u64 << exponent;
        bounded(file, &gguf(n, 0, &[]), "tensor count: expected at most");
        bounded(file, &gguf(0, n, &[]), "metadata count: expected at most");
        bounded(file, &gguf(0, 1, &[n.to_le_bytes().to_vec()]), "metadata key 0: expected");
        bounded(file, &array(8, n), "metadata `k` length: expected at most");
        for number in [0, 4, 6, 10, 12] {
            bounded(file, &array(number, n), "metadata `k`: expected");
        }
        let dims =
            [2u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()];
        let tensor = [text("t"), dims.concat(), vec![0; 12]];
        bounded(file, &gguf(1, 0, &tensor), "tensor `t` ");
    }
}

fn folders(dir: &TempDir) {
    let config = json!({
        "model_type": "phimoe", "vocab_size": 1 << 20, "hidden_size": 1 << 20, "num_hidden_layers": 4096,
        "num_attention_heads": 1 << 20, "head_dim": 1 << 20, "num_local_experts": 4096,
        "intermediate_size": 1 << 20, "max_position_embeddings": 1 << 20,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let weights = |header: &str, len: Option<u64>, message: &str| {
        let len = len.unwrap_or(header.len() as u64);
        let file = [&len.to_le_bytes()[..], header.as_bytes()].concat();
        fs::write(dir.path().join("model.safetensors"), &file).unwrap();
        let peak = peak_of_opening(dir.path(), message);
        assert!(peak <= file.len() + FIXED, "{peak} bytes for {} bytes: {message}", file.len());
    };
    for exponent in [26, 40, 62, 63] {
        weights("{}", Some(1 << exponent), "header length: expected at most 2");
    }
    let filled = format!("{{{}}}", " ".repeat(1000));
    weights(&filled, None, "tensor `model.embed_tokens.weight`: expected to be there");
    let huge = r#"{"model.embed_tokens.weight":{"dtype":"BF16","shape":[1048576,1048576],"data_offsets":[0,2199023255552]}}"#;
    weights(huge, None, "expected an end within the 0 bytes of data");

    // Sparse: longer than any config, without a byte on the disk.
    let sparse = fs::File::create(dir.path().join("config.json")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let peak = peak_of_opening(dir.path(), "file size: expected at most 1048576 bytes");
    assert!(peak <= FIXED, "{peak} bytes for a config of 1 TiB");
}

/// What is really there may be parsed into more than its length, but by no more than a small factor.
fn large_but_honest(file: &Path) {
    let n = 1_000_000u64;
    let strings: Vec<Vec<u8>> = (0..n).map(|_| text("")).collect();
    let head = [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &n.to_le_bytes()].concat();
    let content = gguf(0, 1, &[text("k"), head, strings.concat()]);
    fs::write(file, &content).unwrap();
    let peak = peak_of_opening(file, "general.architecture");
    // 24 bytes a string where the file has 8, in a vector that doubles.
    assert!(peak <= 8 * content.len(), "{peak} bytes for {}", content.len());
}
