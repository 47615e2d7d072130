//! What reader and writer must agree on: a tensor's size, the alignment, the types' numbers.

use std::fmt::Display;
use std::path::Path;

use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAX_DIMS, Metadata};
use crate::text::Quoted;
use crate::{DType, FormatError, Result};

/// Bytes of a tensor of that row-major shape, after checking the shape against the format.
pub(super) fn tensor_bytes(path: &Path, name: &str, dtype: DType, shape: &[usize]) -> Result<u64> {
    let error = |expected: &dyn Display, found: &dyn Display| {
        FormatError::invalid(path, format_args!("tensor {} shape", Quoted(name)), expected, found)
    };
    if shape.is_empty() || shape.len() > MAX_DIMS {
        return Err(error(&"1 to 4 dimensions", &format_args!("{} dimensions", shape.len())));
    }
    if shape.contains(&0) {
        return Err(error(&"dimensions above 0", &format_args!("{shape:?}")));
    }
    let row = shape[shape.len() - 1];
    if !row.is_multiple_of(dtype.block_len()) {
        return Err(error(
            &format_args!("rows of a multiple of {} weights for {dtype}", dtype.block_len()),
            &format_args!("rows of {row}"),
        ));
    }
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .and_then(|n| dtype.bytes_for(n))
        .and_then(|n| u64::try_from(n).ok())
        .ok_or_else(|| error(&"a size that fits 64 bits", &format_args!("{shape:?}")))
}

/// The alignment of tensor data that the metadata asks for.
pub(super) fn alignment(path: &Path, metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.u64(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && alignment.is_multiple_of(8) {
        return Ok(alignment);
    }
    Err(FormatError::invalid(
        path,
        format_args!("metadata `{ALIGNMENT_KEY}`"),
        "a power of two that is a multiple of 8",
        alignment,
    ))
}

/// The encoding with that number, or an error that names it.
pub(super) fn dtype(path: &Path, name: &str, id: u32) -> Result<DType> {
    DType::from_ggml_id(id).ok_or_else(|| {
        let known = DType::ALL.map(DType::name).join(", ");
        let found = match unsupported_name(id) {
            Some(type_name) => format!("type {id} ({type_name}), which Tandem does not read"),
            None => format!("unknown type {id}"),
        };
        let field = format_args!("tensor {} type", Quoted(name)).to_string();
        FormatError::invalid(path, field, format_args!("one of {known}"), found)
    })
}

/// GGML's name for a type that is not in [`DType`].
fn unsupported_name(id: u32) -> Option<&'static str> {
    Some(match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}
