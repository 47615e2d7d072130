//! Every rejection, by its whole message, and truncation at every byte.

use std::fs;
use std::path::Path;

use tandem_formats::FormatError;
use tandem_formats::safetensors::{Dtype, Header, SafetensorsFile, parse_header};
use tandem_testkit::Rng;
use tempfile::tempdir;

fn parse(bytes: &[u8]) -> Result<Header, FormatError> {
    parse_header(Path::new("dir/bad.safetensors"), &mut &bytes[..], bytes.len() as u64)
}

/// A file of that header with `data_len` bytes of data.
fn file(header: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_len, 7);
    bytes
}

#[track_caller]
fn bytes_rejected(bytes: &[u8], message: &str) {
    match parse(bytes) {
        Ok(_) => panic!("accepted; should have said: {message}"),
        Err(e) => assert_eq!(e.to_string(), format!("dir/bad.safetensors: {message}")),
    }
}

#[track_caller]
fn rejected(header: &str, data_len: usize, message: &str) {
    bytes_rejected(&file(header, data_len), message);
}

/// As [`rejected`], for what the JSON library says; it ends with a line and a column.
#[track_caller]
fn json_rejected(header: &str, found: &str) {
    let message = parse(&file(header, 1)).unwrap_err().to_string();
    let (text, place) = message.rsplit_once(" at line ").unwrap();
    let expected = "dir/bad.safetensors: header: expected JSON that describes tensors, found";
    assert_eq!(text, format!("{expected} {found}"));
    assert!(place.starts_with("1 column "), "{message}");
}

const VALID: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},"none":{"dtype":"I64","shape":[0,5],"data_offsets":[24,24]}}"#;

#[test]
fn the_header_these_tests_spoil_is_valid() {
    let header = parse(&file(VALID, 26)).unwrap();
    assert_eq!(header.metadata["format"], "pt");
    assert_eq!(header.data_offset, 8 + VALID.len() as u64);
    let b = &header.tensors["b"];
    assert_eq!(
        (b.dtype, b.shape.len(), b.offset, b.n_bytes),
        (Dtype::BF16, 0, header.data_offset + 24, 2)
    );
    assert_eq!(header.tensors["none"].shape, [0, 5]);
}

#[test]
fn header_lengths() {
    bytes_rejected(b"1234567", "header length: expected 8 bytes, found a file of 7 bytes");
    for length in [3, 100_000_001, u64::MAX] {
        bytes_rejected(
            &[&length.to_le_bytes()[..], b"{}"].concat(),
            &format!("header length: expected at most 2 in a file of 10 bytes, found {length}"),
        );
    }
    let path = Path::new("dir/bad.safetensors");
    let long = 100_000_001u64.to_le_bytes();
    let error = parse_header(path, &mut &long[..], 1 << 40).unwrap_err();
    assert_eq!(
        error.to_string(),
        "dir/bad.safetensors: header length: expected at most 100000000 in a file of 1099511627776 bytes, \
         found 100000001"
    );
}

#[test]
fn json() {
    for (header, found) in [
        ("", "EOF while parsing a value"),
        ("{", "EOF while parsing an object"),
        ("[]", "invalid type: sequence, expected an object with one entry per tensor"),
        (r#"{"t":3}"#, "invalid type: integer `3`, expected struct RawTensor"),
        (r#"{"t":{"dtype":"F32","shape":[]}}"#, "missing field `data_offsets`"),
        (
            r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#,
            "invalid value: integer `-1`, expected u64",
        ),
        (r#"{"t":{"dtype":"F32","shape":[],"data_offsets":[0,1,2]}}"#, "trailing characters"),
        (r#"{"__metadata__":{"a":1}}"#, "invalid type: integer `1`, expected a string"),
        (r#"{}x"#, "trailing characters"),
    ] {
        json_rejected(header, found);
    }
}

#[test]
fn texts_from_the_file_cannot_fill_the_screen() {
    let long = "x".repeat(5000);
    for header in [
        format!(r#"{{"t":"{long}"}}"#),
        one(&long, "[]", "[0,0]"),
        one("U8", "[]", &format!("\"{long}\"")),
    ] {
        let message = parse(&file(&header, 0)).unwrap_err().to_string();
        assert!(message.contains("xxx...") && message.len() < 500, "{message}");
    }
}

#[test]
fn repeated_names() {
    let tensor = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    for (header, found) in [
        (format!(r#"{{"t":{tensor},"t":{tensor}}}"#), "`t` appears twice"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(), "`__metadata__` appears twice"),
        (r#"{"__metadata__":{"a":"","a":""}}"#.to_owned(), "`a` appears twice"),
        (
            r#"{"t":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.to_owned(),
            "duplicate field `dtype`",
        ),
    ] {
        json_rejected(&header, found);
    }
}

/// A header of one tensor.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn types_and_shapes() {
    rejected(
        &one("F4", "[2]", "[0,1]"),
        1,
        "tensor `t` dtype: expected one of BOOL, U8, I8, F8_E4M3, F8_E5M2, I16, U16, F16, BF16, I32, U32, F32, \
         F64, I64, U64, found `F4`",
    );
    rejected(
        &one("F32", "[4294967296,4294967296]", "[0,0]"),
        0,
        "tensor `t` shape: expected a size that fits 64 bits, found [4294967296, 4294967296]",
    );
    rejected(
        &one("F64", "[2305843009213693952]", "[0,0]"),
        0,
        "tensor `t` shape: expected a size that fits 64 bits, found [2305843009213693952]",
    );
    for offsets in ["[0,23]", "[0,25]", "[24,0]", "[18446744073709551615,0]"] {
        let found = offsets.replace(',', " to ").replace(['[', ']'], "");
        rejected(
            &one("F32", "[2,3]", offsets),
            24,
            &format!(
                "tensor `t` data_offsets: expected 24 bytes for F32 of shape [2, 3], found {found}"
            ),
        );
    }
    rejected(
        &one("U8", "[1,1,1,1,1,1,1,1,2]", "[0,1]"),
        1,
        "tensor `t` data_offsets: expected 2 bytes for U8 of shape [1, ... 7 more ..., 2], found 0 to 1",
    );
}

#[test]
fn places() {
    let two = |a: &str, b: &str| {
        let tensor = |offsets| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, tensor(a), tensor(b))
    };
    rejected(
        &two("[0,4]", "[3,7]"),
        8,
        "tensor `b` data_offsets: expected a start at 4, where the tensor before ends, found 3 to 7",
    );
    rejected(
        &two("[0,4]", "[0,4]"),
        8,
        "tensor `b` data_offsets: expected a start at 4, where the tensor before ends, found 0 to 4",
    );
    rejected(
        &two("[5,9]", "[0,4]"),
        9,
        "tensor `a` data_offsets: expected a start at 4, where the tensor before ends, found 5 to 9",
    );
    rejected(
        &two("[0,4]", "[4,8]"),
        7,
        "tensor `b` data_offsets: expected an end within the 7 bytes of data, found 4 to 8",
    );
    rejected(
        &two("[0,4]", "[18446744073709551611,18446744073709551615]"),
        8,
        "tensor `b` data_offsets: expected an end within the 8 bytes of data, \
         found 18446744073709551611 to 18446744073709551615",
    );
    rejected(
        &two("[0,4]", "[4,8]"),
        9,
        "tensor data: expected 8 bytes, as the tensors in the header add up to, found 9 bytes",
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error_that_names_it() {
    let whole = file(VALID, 26);
    let dir = tempdir().unwrap();
    let path = dir.path().join("cut.safetensors");
    for len in 0..whole.len() {
        let error = parse(&whole[..len]).expect_err("a file cut short").to_string();
        assert!(error.starts_with("dir/bad.safetensors: "), "{len}: {error}");
        fs::write(&path, &whole[..len]).unwrap();
        let error = SafetensorsFile::open(&path).expect_err("a file cut short").to_string();
        assert!(error.starts_with(&format!("{}: ", path.display())), "{len}: {error}");
    }
}

/// The length was right when the file was opened, but the stream ends early.
#[test]
fn a_stream_that_ends_early_is_an_error() {
    let whole = file(VALID, 26);
    for len in 0..8 + VALID.len() {
        let path = Path::new("dir/bad.safetensors");
        let error =
            parse_header(path, &mut &whole[..len], whole.len() as u64).unwrap_err().to_string();
        assert!(error.starts_with("dir/bad.safetensors: "), "{len}: {error}");
    }
}

/// Whatever the bytes, the parser answers in one line, and what it accepts lies within the file.
#[test]
fn spoiled_bytes_never_lead_outside_the_file() {
    let whole = file(VALID, 26);
    let mut rng = Rng::new(12);
    for _ in 0..50_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len());
            bytes[at] = [b'0', b'9', b'"', b'[', b'\n', rng.next_u64() as u8][rng.below(6)];
        }
        match parse(&bytes) {
            Ok(header) => {
                for tensor in header.tensors.values() {
                    assert!(tensor.offset + tensor.n_bytes <= bytes.len() as u64);
                }
            }
            Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
        }
    }
}
