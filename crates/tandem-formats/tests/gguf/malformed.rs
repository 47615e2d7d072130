//! Every rejection, by its whole message, and truncation at every byte.

use std::fs;
use std::path::Path;

use tandem_formats::gguf::{GgufFile, Header, parse_header};
use tandem_formats::{DType, FormatError};
use tandem_testkit::Rng;
use tempfile::tempdir;

use crate::bytes::{RawFile, array, kind, string, tensor};

fn parse(bytes: &[u8]) -> Result<Header, FormatError> {
    parse_header(Path::new("dir/bad.gguf"), &mut &bytes[..], bytes.len() as u64)
}

#[track_caller]
fn rejected(bytes: &[u8], message: &str) {
    match parse(bytes) {
        Ok(_) => panic!("accepted; should have said: {message}"),
        Err(e) => assert_eq!(e.to_string(), format!("dir/bad.gguf: {message}")),
    }
}

#[track_caller]
fn file_rejected(file: &RawFile, message: &str) {
    rejected(&file.bytes(), message);
}

#[test]
fn the_file_these_tests_spoil_is_valid() {
    for version in [2, 3] {
        let header = parse(&RawFile { version, ..RawFile::new() }.bytes()).unwrap();
        assert_eq!((header.version, header.alignment), (version, 32));
        assert_eq!(header.metadata.len(), 4);
        let blocks = &header.tensors["blocks"];
        assert_eq!(
            (blocks.dtype, &blocks.shape[..], blocks.n_bytes),
            (DType::Q8_0, &[2, 32][..], 68)
        );
        assert_eq!(blocks.offset, header.data_offset + 64);
    }
}

#[test]
fn magic_and_version() {
    file_rejected(
        &RawFile { magic: *b"GG\nF", ..RawFile::new() },
        r"magic: expected `GGUF`, found `GG\nF`",
    );
    for (version, message) in [
        (0, "version: expected 2 or 3, found 0"),
        (1, "version: expected 2 or 3, found 1"),
        (4, "version: expected 2 or 3, found 4"),
        (
            0x0300_0000,
            "version: expected 2 or 3 in little-endian byte order, found 3 in big-endian byte order",
        ),
    ] {
        file_rejected(&RawFile { version, ..RawFile::new() }, message);
    }
}

#[test]
fn counts_beyond_what_the_file_can_hold() {
    let file = RawFile::new();
    let rest = file.bytes().len() - 16;
    file_rejected(
        &RawFile { n_tensors: Some(1 << 60), ..file.clone() },
        &format!(
            "tensor count: expected at most {} in a file of this size, found {}",
            rest / 32,
            1u64 << 60
        ),
    );
    file_rejected(
        &RawFile { n_entries: Some(u64::MAX), ..file },
        &format!(
            "metadata count: expected at most {} in a file of this size, found {}",
            (rest - 8) / 13,
            u64::MAX
        ),
    );
}

#[test]
fn lengths_beyond_the_end() {
    let file = RawFile { tensors: vec![], data_len: 0, ..RawFile::new() };
    let end = |file: &RawFile| file.bytes().len() - file.header().len();

    let mut long_string = file.clone().entry("k", kind::STRING, u64::MAX.to_le_bytes().to_vec());
    let at = long_string.header().len();
    file_rejected(
        &long_string,
        &format!(
            "metadata `k`: expected {} bytes at offset {at}, found {} bytes before the end of the file",
            u64::MAX,
            end(&long_string)
        ),
    );
    let last = long_string.entries.len() - 1;
    long_string.entries[last].0 = [&(1u64 << 40).to_le_bytes()[..], b"k"].concat();
    let at = at - 13;
    let left = long_string.bytes().len() - at;
    file_rejected(
        &long_string,
        &format!(
            "metadata key 4: expected 1099511627776 bytes at offset {at}, found {left} bytes before the end of the file"
        ),
    );

    let long_array = file.clone().entry("k", kind::ARRAY, array(kind::U32, u64::MAX / 2, &[]));
    file_rejected(
        &long_array,
        &format!(
            "metadata `k`: expected {} bytes at offset {}, found {} bytes before the end of the file",
            u64::MAX,
            long_array.header().len(),
            end(&long_array)
        ),
    );
    let strings = file.entry("k", kind::ARRAY, array(kind::STRING, 1 << 50, &[]));
    file_rejected(
        &strings,
        &format!(
            "metadata `k` length: expected at most {} strings in the rest of the file, found {}",
            end(&strings) / 8,
            1u64 << 50
        ),
    );
}

#[test]
fn metadata_values() {
    let file = RawFile::new();
    file_rejected(
        &file.clone().entry("k", 13, vec![0]),
        "metadata `k` type: expected a value type from 0 to 12, found 13",
    );
    file_rejected(
        &file.clone().entry("k", kind::ARRAY, array(99, 0, &[])),
        "metadata `k` element type: expected a value type from 0 to 12, found 99",
    );
    file_rejected(
        &file.clone().entry("k", kind::ARRAY, array(kind::ARRAY, 1, &array(kind::U8, 1, &[1]))),
        "metadata `k`: expected an array of numbers, booleans or strings, found an array of arrays",
    );
    file_rejected(
        &file.clone().entry("k", kind::BOOL, vec![2]),
        "metadata `k`: expected a boolean, 0 or 1, found 2",
    );
    file_rejected(
        &file.clone().entry("k", kind::ARRAY, array(kind::BOOL, 3, &[0, 1, 255])),
        "metadata `k`: expected a boolean, 0 or 1, found 255",
    );
    file_rejected(
        &file.clone().entry("flag", kind::BOOL, vec![0]),
        "metadata `flag`: expected each key once, found a second entry with this key",
    );
}

#[test]
fn invalid_utf8() {
    let text = [&3u64.to_le_bytes()[..], b"a\xffb"].concat();
    let file = RawFile::new().entry("k", kind::STRING, text.clone());
    let tensors = RawFile { tensors: vec![], ..file.clone() };
    let at = tensors.header().len() - 2;
    file_rejected(
        &file,
        &format!("metadata `k`: expected UTF-8 text, found an invalid byte at offset {at}"),
    );
    let mut key = file;
    key.entries[0].0 = text.clone();
    file_rejected(&key, "metadata key 0: expected UTF-8 text, found an invalid byte at offset 33");
    let mut element = RawFile::new();
    element.entries = vec![(string("k"), kind::ARRAY, array(kind::STRING, 1, &text))];
    file_rejected(
        &element,
        "metadata `k` element 0: expected UTF-8 text, found an invalid byte at offset 58",
    );
    let mut name = RawFile { entries: vec![], ..RawFile::new() };
    name.tensors[0].name = text;
    file_rejected(
        &name,
        "name of tensor 0: expected UTF-8 text, found an invalid byte at offset 33",
    );
}

#[test]
fn alignment() {
    let with =
        |a: u32| RawFile::new().entry("general.alignment", kind::U32, a.to_le_bytes().to_vec());
    for a in [0, 1, 4, 24, 33] {
        file_rejected(
            &with(a),
            &format!(
                "metadata `general.alignment`: expected a power of two that is a multiple of 8, found {a}"
            ),
        );
    }
    file_rejected(
        &RawFile::new().entry("general.alignment", kind::STRING, string("32")),
        "metadata `general.alignment`: expected a non-negative integer, found string `32`",
    );
    for a in [8u32, 64] {
        let header = parse(&RawFile { alignment: a as usize, ..with(a) }.bytes()).unwrap();
        assert_eq!((header.alignment, header.data_offset % u64::from(a)), (a.into(), 0));
    }
    // Offsets follow the file's alignment, not the usual one.
    file_rejected(
        &RawFile { alignment: 128, ..with(128) },
        "tensor `blocks` offset: expected a multiple of 128, found 64",
    );
}

#[test]
fn tensor_shapes() {
    let file = |dims: &[u64], kind| RawFile::new().tensors(&[tensor("t", dims, kind, 0)]);
    file_rejected(&file(&[], 0), "tensor `t` dimension count: expected 1 to 4, found 0");
    file_rejected(&file(&[1; 5], 0), "tensor `t` dimension count: expected 1 to 4, found 5");
    file_rejected(&file(&[4, 0], 0), "tensor `t` shape: expected dimensions above 0, found [0, 4]");
    file_rejected(
        &file(&[1 << 32, 1 << 32], 0),
        "tensor `t` shape: expected a size that fits 64 bits, found [4294967296, 4294967296]",
    );
    file_rejected(
        &file(&[1 << 62], 0),
        "tensor `t` shape: expected a size that fits 64 bits, found [4611686018427387904]",
    );
    file_rejected(
        &file(&[33, 32], 2),
        "tensor `t` shape: expected rows of a multiple of 32 weights for q4_0, found rows of 33",
    );
    file_rejected(
        &file(&[448, 2], 12),
        "tensor `t` shape: expected rows of a multiple of 256 weights for q4_k, found rows of 448",
    );
}

#[test]
fn tensor_types() {
    let known = "one of f32, f16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, bf16";
    for (kind, found) in [
        (4, "unknown type 4"),
        (10, "type 10 (Q2_K), which Tandem does not read"),
        (23, "type 23 (IQ4_XS), which Tandem does not read"),
        (u32::MAX, "unknown type 4294967295"),
    ] {
        file_rejected(
            &RawFile::new().tensors(&[tensor("t", &[256], kind, 0)]),
            &format!("tensor `t` type: expected {known}, found {found}"),
        );
    }
}

#[test]
fn tensor_places() {
    let two = |second: u64| {
        RawFile::new()
            .tensors(&[tensor("floats", &[16], 0, 0), tensor("blocks", &[32, 2], 8, second)])
    };
    file_rejected(&two(80), "tensor `blocks` offset: expected a multiple of 32, found 80");
    file_rejected(
        &two(32),
        "tensor `blocks` offset: expected at least 64, the end of tensor `floats`, found 32",
    );
    file_rejected(
        &two(0),
        "tensor `floats` offset: expected at least 68, the end of tensor `blocks`, found 0",
    );
    let file = two(96);
    let (start, len) = (file.header().len().next_multiple_of(32), file.bytes().len());
    file_rejected(
        &file,
        &format!(
            "tensor `blocks` data: expected 68 bytes at offset {start} + 96, found a file of {len} bytes"
        ),
    );
    file_rejected(
        &two(u64::MAX - 31),
        &format!(
            "tensor `blocks` data: expected 68 bytes at offset {start} + {}, found a file of {len} bytes",
            u64::MAX - 31
        ),
    );
    file_rejected(
        &RawFile::new().tensors(&[tensor("t", &[4], 0, 0), tensor("t", &[4], 0, 32)]),
        "tensor `t`: expected each name once, found a second tensor with this name",
    );
}

#[test]
fn names_from_the_file_cannot_break_the_line() {
    let long = "x".repeat(5000);
    let file = RawFile::new().tensors(&[tensor(&format!("a\n\u{1b}{long}"), &[], 0, 0)]);
    let message = parse(&file.bytes()).unwrap_err().to_string();
    assert!(message.starts_with(r"dir/bad.gguf: tensor `a\n\u{1b}xxx"), "{message}");
    assert!(message.len() < 300 && !message.contains('\n'), "{message}");
}

#[test]
fn a_file_cut_anywhere_is_an_error_that_names_it() {
    let whole = RawFile::new().bytes();
    let dir = tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    for len in 0..whole.len() {
        let error = parse(&whole[..len]).expect_err("a header cut short").to_string();
        assert!(error.starts_with("dir/bad.gguf: "), "{len}: {error}");
        fs::write(&path, &whole[..len]).unwrap();
        let error = GgufFile::open(&path).expect_err("a file cut short").to_string();
        assert!(error.starts_with(&format!("{}: ", path.display())), "{len}: {error}");
    }
}

/// The length was right when the file was opened, but the stream ends early.
#[test]
fn a_stream_that_ends_early_is_an_error() {
    let file = RawFile::new();
    let whole = file.bytes();
    for len in 0..file.header().len() {
        let path = Path::new("dir/bad.gguf");
        let error =
            parse_header(path, &mut &whole[..len], whole.len() as u64).unwrap_err().to_string();
        assert!(error.starts_with("dir/bad.gguf: "), "{len}: {error}");
    }
}

/// Whatever the bytes, the parser answers, and what it accepts lies within the file.
#[test]
fn spoiled_bytes_never_lead_outside_the_file() {
    let whole = RawFile::new().bytes();
    let mut rng = Rng::new(11);
    for _ in 0..50_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len());
            bytes[at] = [0, 1, 0x7f, 0x80, 0xff, rng.next_u64() as u8][rng.below(6)];
        }
        if let Ok(header) = parse(&bytes) {
            for tensor in header.tensors.values() {
                assert!(tensor.offset + tensor.n_bytes <= bytes.len() as u64);
            }
        }
    }
}
