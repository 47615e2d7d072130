//! GGUF files damaged byte by byte: cut, with another magic, with tensors in impossible places, with scales that are
//! no numbers.

use std::fs;

use tandem_formats::DType;
use tandem_formats::gguf::GgufFile;
use tandem_model::catalogue::LayerTensor;
use tandem_model::{Checkpoint, TensorId};
use tandem_testkit::Rng;

use crate::gguf_keys::Gguf;
use crate::scratch::one_line;

/// The message for a file of those bytes, without the file's name.
fn refused(gguf: &Gguf, bytes: &[u8]) -> String {
    gguf.model.put("bad.gguf", bytes);
    let message = gguf.model.message(Checkpoint::open(&gguf.model.file("bad.gguf")));
    message.strip_prefix("DIR/bad.gguf: ").expect("the file's name comes first").to_owned()
}

/// Where a length-prefixed text ends in a header.
fn after(bytes: &[u8], text: &str) -> usize {
    let pattern = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    bytes.windows(pattern.len()).position(|w| w == pattern).expect("in the header") + pattern.len()
}

#[test]
fn a_file_cut_anywhere() {
    let gguf = Gguf::new(DType::Q4_0);
    let whole = fs::read(&gguf.path).unwrap();
    let file = GgufFile::open(&gguf.path).unwrap();
    let tensors = file.tensors().values();
    let data: Vec<usize> = tensors.map(|t| usize::try_from(t.offset).unwrap()).collect();
    let ends = file.tensors().values().map(|t| usize::try_from(t.offset + t.n_bytes).unwrap());
    // Padding after the last tensor may be missing.
    let end = ends.max().unwrap();
    let key = after(&whole, "general.architecture");
    let info = after(&whole, "token_embd.weight");
    // Magic, version, two counts; a key, its type, the value's length; a name, dimensions, type, offset.
    let boundaries = [0, 4, 8, 16, 24, 32, key, key + 4, key + 12]
        .into_iter()
        .chain([info, info + 4, info + 12, info + 20, info + 24, info + 32])
        .chain(data.iter().flat_map(|&at| [at - 1, at, at + 1]))
        .chain([end - 1]);
    let evenly = (0..200).map(|i| i * end / 200);
    let first_byte_of_data = *data.iter().min().unwrap();
    for len in boundaries.chain(evenly).filter(|&len| len < end) {
        let message = refused(&gguf, &whole[..len]);
        if len >= first_byte_of_data {
            let found = format!("found a file of {len} bytes");
            assert!(message.starts_with("tensor `") && message.ends_with(&found), "{message}");
        }
    }
    assert_eq!(
        refused(&gguf, &whole[..6]),
        "version: expected 4 bytes at offset 4, found 2 bytes before the end of the file"
    );
    gguf.model.put("bad.gguf", &whole[..end]);
    Checkpoint::open(&gguf.model.file("bad.gguf")).unwrap();
}

#[test]
fn magic_and_version() {
    let gguf = Gguf::new(DType::F32);
    let mut bytes = fs::read(&gguf.path).unwrap();
    bytes[..4].copy_from_slice(b"GGML");
    assert_eq!(refused(&gguf, &bytes), "magic: expected `GGUF`, found `GGML`");
    bytes[..4].copy_from_slice(b"\n\0\xff\x1b");
    assert_eq!(refused(&gguf, &bytes), "magic: expected `GGUF`, found `\\n\\x00\\xff\\x1b`");
    bytes[..8].copy_from_slice(b"GGUF\x01\0\0\0");
    assert_eq!(refused(&gguf, &bytes), "version: expected 2 or 3, found 1");
}

#[test]
fn tensor_infos() {
    let gguf = Gguf::new(DType::Q8_0);
    let whole = fs::read(&gguf.path).unwrap();
    // After the name: dimension count, two dimensions, type, offset.
    let at = after(&whole, "output.weight");
    let (kind, offset) = (at + 20, at + 24);
    let with = |place: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[place..place + bytes.len()].copy_from_slice(bytes);
        refused(&gguf, &file)
    };
    let types = "one of f32, f16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, bf16";
    assert_eq!(
        with(kind, &99u32.to_le_bytes()),
        format!("tensor `output.weight` type: expected {types}, found unknown type 99")
    );
    assert_eq!(
        with(kind, &39u32.to_le_bytes()),
        format!(
            "tensor `output.weight` type: expected {types}, found type 39 (MXFP4), which Tandem does not read"
        )
    );
    assert_eq!(
        with(kind, &14u32.to_le_bytes()),
        "tensor `output.weight` shape: expected rows of a multiple of 256 weights for q6_k, found rows of 32"
    );
    assert!(
        with(offset, &(1u64 << 40).to_le_bytes())
            .ends_with(&format!("found a file of {} bytes", whole.len()))
    );
    assert!(
        with(offset, &(u64::MAX - 31).to_le_bytes())
            .starts_with("tensor `output.weight` data: expected")
    );
    assert_eq!(
        with(offset, &33u64.to_le_bytes()),
        "tensor `output.weight` offset: expected a multiple of 32, found 33"
    );
    // The embedding lies at the beginning of the data.
    let message = with(offset, &32u64.to_le_bytes());
    assert_eq!(
        message,
        "tensor `output.weight` offset: expected at least 2176, the end of tensor `token_embd.weight`, found 32"
    );
    assert_eq!(
        with(at + 4, &(1u64 << 62).to_le_bytes()),
        "tensor `output.weight` shape: expected a size that fits 64 bits, found [64, 4611686018427387904]"
    );
    assert_eq!(
        with(at + 12, &0u64.to_le_bytes()),
        "tensor `output.weight` shape: expected dimensions above 0, found [0, 32]"
    );
}

/// The scale of a block of 32 weights; row and column are those of the block's first weight.
#[test]
fn scales_that_are_not_finite() {
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let gguf = Gguf::new(dtype);
        let file = GgufFile::open(&gguf.path).unwrap();
        let mut bytes = fs::read(&gguf.path).unwrap();
        let (expert, row) = (2, 7);
        let stack = &file.tensors()["blk.1.ffn_up_exps.weight"];
        // Rows are one block.
        let at = usize::try_from(stack.offset).unwrap() + (expert * 32 + row) * dtype.block_bytes();
        for scale in [0x7e00u16, 0x7c00, 0xfc00] {
            bytes[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            gguf.model.put("bad.gguf", &bytes);
            let checkpoint = Checkpoint::open(&gguf.model.file("bad.gguf")).unwrap();
            let id = |e| TensorId::Layer(1, LayerTensor::ExpertUp(e));
            assert_eq!(
                gguf.model.message(checkpoint.read_f32(id(2))),
                "DIR/bad.gguf: tensor `blk.1.ffn_up_exps.weight` expert `2`: expected finite weights, \
                 found NaN or infinity at row 7, column 0"
            );
            checkpoint.read_f32(id(1)).unwrap();
        }
    }
}

/// Whatever happens to a header, opening gives a model whose tensors can be read, or one line.
#[test]
fn spoiled_headers() {
    let gguf = Gguf::new(DType::Q8_0);
    let whole = fs::read(&gguf.path).unwrap();
    let file = GgufFile::open(&gguf.path).unwrap();
    let header = file.tensors().values().map(|t| t.offset).min().unwrap();
    let mut rng = Rng::new(3);
    let (mut opened, path) = (0, gguf.model.file("bad.gguf"));
    for _ in 0..1000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(usize::try_from(header).unwrap());
            bytes[at] = [rng.below(256) as u8, 0, 255, bytes[at] ^ 1][rng.below(4)];
        }
        fs::write(&path, bytes).unwrap();
        match Checkpoint::open(&path) {
            Ok(checkpoint) => {
                opened += 1;
                for (id, _) in checkpoint.tensors() {
                    checkpoint.read_f32(id).unwrap();
                }
            }
            e @ Err(_) => drop(one_line(e)),
        }
    }
    assert!((50..950).contains(&opened), "{opened} opened");
}
