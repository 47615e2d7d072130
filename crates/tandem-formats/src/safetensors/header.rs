//! Parsing and checking the header.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Read;
use std::path::Path;

use super::json::{RawHeader, RawTensor};
use super::{Dtype, MAX_HEADER_BYTES, TensorInfo};
use crate::text::Quoted;
use crate::{FormatError, Result};

/// A checked header.
#[derive(Clone, Debug)]
pub struct Header {
    /// The file's free-form strings.
    pub metadata: BTreeMap<String, String>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// First byte of tensor data, counted from the start of the file.
    pub data_offset: u64,
}

/// Parses the header of a safetensors file of `file_len` bytes from a stream that starts at its first byte.
///
/// # Errors
/// When the stream fails, or the header contradicts the format or the file's length. `path` is only named.
pub fn parse_header(path: &Path, input: &mut impl Read, file_len: u64) -> Result<Header> {
    let json = header_bytes(path, input, file_len)?;
    let data_offset = 8 + json.len() as u64;
    let raw: RawHeader = serde_json::from_slice(&json)
        .map_err(|e| FormatError::invalid(path, "header", "JSON that describes tensors", e))?;
    let mut tensors = BTreeMap::new();
    for (name, raw) in raw.tensors {
        let info = tensor(path, &name, raw)?;
        tensors.insert(name, info);
    }
    place(path, tensors.values_mut(), data_offset, file_len)?;
    Ok(Header { metadata: raw.metadata, tensors, data_offset })
}

fn header_bytes(path: &Path, input: &mut impl Read, file_len: u64) -> Result<Vec<u8>> {
    let Some(rest) = file_len.checked_sub(8) else {
        return Err(FormatError::invalid(
            path,
            "header length",
            "8 bytes",
            format_args!("a file of {file_len} bytes"),
        ));
    };
    let mut len = [0; 8];
    input
        .read_exact(&mut len)
        .map_err(|e| FormatError::io(path, "cannot read header length", e))?;
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER_BYTES || len > rest {
        let most = rest.min(MAX_HEADER_BYTES);
        let expected = format_args!("at most {most} in a file of {file_len} bytes").to_string();
        return Err(FormatError::invalid(path, "header length", expected, len));
    }
    let mut json = Vec::new();
    input
        .take(len)
        .read_to_end(&mut json)
        .map_err(|e| FormatError::io(path, format_args!("cannot read {len} bytes of header"), e))?;
    if (json.len() as u64) < len {
        let found = format_args!("{} bytes", json.len()).to_string();
        return Err(FormatError::invalid(path, "header", format_args!("{len} bytes"), found));
    }
    Ok(json)
}

/// A tensor with its size checked; `offset` is still relative to the start of the data.
fn tensor(path: &Path, name: &str, raw: RawTensor) -> Result<TensorInfo> {
    let error = |field: &str, expected: &dyn Display, found: &dyn Display| {
        FormatError::invalid(path, format_args!("tensor {} {field}", Quoted(name)), expected, found)
    };
    let dtype = Dtype::from_name(&raw.dtype).ok_or_else(|| {
        let known: Vec<_> = Dtype::ALL.iter().map(|t| t.name()).collect();
        error("dtype", &format_args!("one of {}", known.join(", ")), &Quoted(&raw.dtype))
    })?;
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&d| d.try_into().ok()).collect();
    let n_bytes = raw.shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d));
    let (Some(shape), Some(n_bytes)) = (shape, n_bytes) else {
        return Err(error("shape", &"a size that fits 64 bits", &ShortList(&raw.shape)));
    };
    let [start, end] = raw.data_offsets;
    if end.checked_sub(start) != Some(n_bytes) {
        return Err(error(
            "data_offsets",
            &format_args!(
                "{n_bytes} bytes for {} of shape {}",
                dtype.name(),
                ShortList(&raw.shape)
            ),
            &format_args!("{start} to {end}"),
        ));
    }
    Ok(TensorInfo { name: name.to_owned(), dtype, shape, offset: start, n_bytes })
}

/// Turns offsets into absolute ones after checking that the tensors cover the data exactly.
fn place<'t>(
    path: &Path,
    tensors: impl Iterator<Item = &'t mut TensorInfo>,
    data_offset: u64,
    file_len: u64,
) -> Result<()> {
    let data_len = file_len - data_offset;
    let mut in_order: Vec<&mut TensorInfo> = tensors.collect();
    in_order.sort_by_key(|t| (t.offset, t.n_bytes));
    let mut covered = 0;
    for tensor in in_order {
        let (start, end) = (tensor.offset, tensor.offset + tensor.n_bytes);
        let error = |expected: &dyn Display, found: &dyn Display| {
            let field = format_args!("tensor {} data_offsets", Quoted(&tensor.name)).to_string();
            FormatError::invalid(path, field, expected, found)
        };
        if end > data_len {
            return Err(error(
                &format_args!("an end within the {data_len} bytes of data"),
                &format_args!("{start} to {end}"),
            ));
        }
        if start != covered {
            return Err(error(
                &format_args!("a start at {covered}, where the tensor before ends"),
                &format_args!("{start} to {end}"),
            ));
        }
        covered = end;
        tensor.offset = data_offset + start;
    }
    if covered != data_len {
        return Err(FormatError::invalid(
            path,
            "tensor data",
            format_args!("{covered} bytes, as the tensors in the header add up to"),
            format_args!("{data_len} bytes"),
        ));
    }
    Ok(())
}

/// The first few dimensions of what may be a very long list.
struct ShortList<'a>(&'a [u64]);

impl Display for ShortList<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [first, .., last] if self.0.len() > 8 => {
                write!(f, "[{first}, ... {} more ..., {last}]", self.0.len() - 2)
            }
            all => write!(f, "{all:?}"),
        }
    }
}
