//! Writing small safetensors files at once: test models, exported activations.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Dtype;
use super::json::METADATA_KEY;
use crate::text::Quoted;
use crate::{AtomicFile, FormatError, Result};

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Dimensions, row-major (slowest first).
    pub shape: &'a [usize],
    /// Its bytes, little-endian.
    pub data: &'a [u8],
}

/// Writes a file, complete or not at all.
///
/// Data is stored widest type first, as the format's own library does, so that every tensor is aligned to its elements.
///
/// # Errors
/// When names repeat, `data` does not fit a shape, or the file cannot be written.
pub fn write(
    path: &Path,
    tensors: &[Tensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut in_order: Vec<&Tensor<'_>> = tensors.iter().collect();
    in_order.sort_by_key(|t| (std::cmp::Reverse(t.dtype.size()), t.name));
    let header = encode_header(path, &in_order, metadata)?;
    let mut file = AtomicFile::create(path)?;
    file.append(&(header.len() as u64).to_le_bytes())?;
    file.append(&header)?;
    for tensor in in_order {
        file.append(tensor.data)?;
    }
    file.commit()
}

fn encode_header(
    path: &Path,
    tensors: &[&Tensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert(METADATA_KEY.to_owned(), json!(metadata));
    }
    let mut offset = 0;
    for tensor in tensors {
        check_size(path, tensor)?;
        let end = offset + tensor.data.len();
        let entry = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        offset = end;
        if tensor.name == METADATA_KEY || header.insert(tensor.name.to_owned(), entry).is_some() {
            let field = format_args!("tensor {}", Quoted(tensor.name)).to_string();
            return Err(FormatError::invalid(
                path,
                field,
                "a name of its own",
                "a name already taken",
            ));
        }
    }
    let mut bytes = Value::Object(header).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

fn check_size(path: &Path, tensor: &Tensor<'_>) -> Result<()> {
    let n_bytes = tensor.shape.iter().try_fold(tensor.dtype.size(), |n, &d| n.checked_mul(d));
    if n_bytes == Some(tensor.data.len()) {
        return Ok(());
    }
    Err(FormatError::invalid(
        path,
        format_args!("tensor {} data", Quoted(tensor.name)),
        format_args!("the size of {} of shape {:?}", tensor.dtype.name(), tensor.shape),
        format_args!("{} bytes", tensor.data.len()),
    ))
}
