//! Parsing and checking everything in front of the tensors' bytes.
//!
//! The parser trusts nothing: each length is compared with the bytes that are left before anything is read, and the
//! memory used stays within a small multiple of the bytes read so far.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Display;
use std::io::Read;
use std::path::Path;

use super::source::Source;
use super::value::{Array, Value, ValueType};
use super::{MAGIC, MAX_DIMS, Metadata, TensorInfo, VERSION, layout};
use crate::text::Quoted;
use crate::{FormatError, Result};

/// Smallest metadata entry: key length, type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;
/// Smallest tensor info: name length, dimension count, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// A checked header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Format version: 2 or 3.
    pub version: u32,
    /// Alignment of tensor data in bytes.
    pub alignment: u64,
    /// The metadata, in file order.
    pub metadata: Metadata,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// First byte of tensor data, counted from the start of the file.
    pub data_offset: u64,
}

/// Parses the header of a GGUF file of `file_len` bytes from a stream that starts at its first byte.
///
/// # Errors
/// When the stream fails, or the header contradicts the format or the file's length. `path` is only named.
pub fn parse_header(path: &Path, input: &mut impl Read, file_len: u64) -> Result<Header> {
    let src = &mut Source::new(path, input, file_len);
    let version = version(src)?;
    let n_tensors = count(src, "tensor count", MIN_TENSOR_BYTES)?;
    let n_entries = count(src, "metadata count", MIN_ENTRY_BYTES)?;
    let metadata = metadata(src, n_entries)?;
    let alignment = layout::alignment(path, &metadata)?;
    let mut tensors = tensors(src, n_tensors)?;
    let data_offset = src.pos().checked_next_multiple_of(alignment).ok_or_else(|| {
        src.error(
            "start of tensor data",
            "an offset that fits 64 bits",
            format_args!("alignment {alignment}"),
        )
    })?;
    place(path, tensors.values_mut(), data_offset, alignment, file_len)?;
    Ok(Header { version, alignment, metadata, tensors, data_offset })
}

fn version<R: Read>(src: &mut Source<'_, R>) -> Result<u32> {
    let magic = src.array("magic")?;
    if magic != MAGIC {
        return Err(src.error("magic", "`GGUF`", format_args!("`{}`", magic.escape_ascii())));
    }
    let version = src.u32("version")?;
    match version {
        2 | VERSION => Ok(version),
        v if v & 0xffff == 0 && v != 0 => Err(src.error(
            "version",
            "2 or 3 in little-endian byte order",
            format_args!("{} in big-endian byte order", v.swap_bytes()),
        )),
        v => Err(src.error("version", "2 or 3", v)),
    }
}

/// A count of things that each take at least `min_bytes` of the rest of the file.
fn count<R: Read>(src: &mut Source<'_, R>, field: &str, min_bytes: u64) -> Result<u64> {
    let n = src.u64(field)?;
    let most = src.remaining() / min_bytes;
    if n > most {
        return Err(src.error(field, format_args!("at most {most} in a file of this size"), n));
    }
    Ok(n)
}

fn metadata<R: Read>(src: &mut Source<'_, R>, n: u64) -> Result<Metadata> {
    let mut metadata = Metadata::of_file(src.path);
    for i in 0..n {
        let key = src.string(format_args!("metadata key {i}"))?;
        let value = value(src, &format_args!("metadata {}", Quoted(&key)))?;
        if metadata.get(&key).is_some() {
            return Err(src.error(
                format_args!("metadata {}", Quoted(&key)),
                "each key once",
                "a second entry with this key",
            ));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn value_type<R: Read>(src: &mut Source<'_, R>, field: impl Display) -> Result<ValueType> {
    let id = src.u32(&field)?;
    ValueType::from_id(id).ok_or_else(|| src.error(field, "a value type from 0 to 12", id))
}

fn value<R: Read>(src: &mut Source<'_, R>, field: &dyn Display) -> Result<Value> {
    Ok(match value_type(src, format_args!("{field} type"))? {
        ValueType::U8 => src.array(field).map(u8::from_le_bytes)?.into(),
        ValueType::I8 => src.array(field).map(i8::from_le_bytes)?.into(),
        ValueType::U16 => src.array(field).map(u16::from_le_bytes)?.into(),
        ValueType::I16 => src.array(field).map(i16::from_le_bytes)?.into(),
        ValueType::U32 => src.array(field).map(u32::from_le_bytes)?.into(),
        ValueType::I32 => src.array(field).map(i32::from_le_bytes)?.into(),
        ValueType::U64 => src.array(field).map(u64::from_le_bytes)?.into(),
        ValueType::I64 => src.array(field).map(i64::from_le_bytes)?.into(),
        ValueType::F32 => src.array(field).map(f32::from_le_bytes)?.into(),
        ValueType::F64 => src.array(field).map(f64::from_le_bytes)?.into(),
        ValueType::Bool => {
            let [byte] = src.array(field)?;
            boolean(src, field, byte)?.into()
        }
        ValueType::String => src.string(field)?.into(),
        ValueType::Array => Value::Array(array(src, field)?),
    })
}

fn boolean<R: Read>(src: &Source<'_, R>, field: &dyn Display, byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(src.error(field, "a boolean, 0 or 1", byte)),
    }
}

fn array<R: Read>(src: &mut Source<'_, R>, field: &dyn Display) -> Result<Array> {
    let element_type = value_type(src, format_args!("{field} element type"))?;
    let n = src.u64(format_args!("{field} length"))?;
    Ok(match element_type {
        ValueType::U8 => Array::U8(src.bytes(n, field)?),
        ValueType::I8 => Array::I8(src.numbers(n, field, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(src.numbers(n, field, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(src.numbers(n, field, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(src.numbers(n, field, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(src.numbers(n, field, i32::from_le_bytes)?),
        ValueType::U64 => Array::U64(src.numbers(n, field, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(src.numbers(n, field, i64::from_le_bytes)?),
        ValueType::F32 => Array::F32(src.numbers(n, field, f32::from_le_bytes)?),
        ValueType::F64 => Array::F64(src.numbers(n, field, f64::from_le_bytes)?),
        ValueType::Bool => {
            let bytes = src.bytes(n, field)?;
            Array::Bool(bytes.into_iter().map(|b| boolean(src, field, b)).collect::<Result<_>>()?)
        }
        ValueType::String => Array::String(strings(src, field, n)?),
        ValueType::Array => {
            return Err(src.error(
                field,
                "an array of numbers, booleans or strings",
                "an array of arrays",
            ));
        }
    })
}

fn strings<R: Read>(src: &mut Source<'_, R>, field: &dyn Display, n: u64) -> Result<Vec<String>> {
    let most = src.remaining() / 8; // each string has at least its length
    if n > most {
        return Err(src.error(
            format_args!("{field} length"),
            format_args!("at most {most} strings in the rest of the file"),
            n,
        ));
    }
    (0..n).map(|i| src.string(format_args!("{field} element {i}"))).collect()
}

/// Tensor infos with their sizes; `offset` is still relative to the start of the data.
fn tensors<R: Read>(src: &mut Source<'_, R>, n: u64) -> Result<BTreeMap<String, TensorInfo>> {
    let mut tensors = BTreeMap::new();
    for i in 0..n {
        let name = src.string(format_args!("name of tensor {i}"))?;
        let info = tensor(src, name)?;
        match tensors.entry(info.name.clone()) {
            Entry::Vacant(place) => place.insert(info),
            Entry::Occupied(_) => {
                return Err(src.error(
                    format_args!("tensor {}", Quoted(&info.name)),
                    "each name once",
                    "a second tensor with this name",
                ));
            }
        };
    }
    Ok(tensors)
}

fn tensor<R: Read>(src: &mut Source<'_, R>, name: String) -> Result<TensorInfo> {
    let quoted = Quoted(&name);
    let n_dims = src.u32(format_args!("tensor {quoted} dimension count"))?;
    if n_dims == 0 || n_dims > MAX_DIMS as u32 {
        return Err(src.error(
            format_args!("tensor {quoted} dimension count"),
            format_args!("1 to {MAX_DIMS}"),
            n_dims,
        ));
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for i in 0..n_dims {
        let dim = src.u64(format_args!("tensor {quoted} dimension {i}"))?;
        shape.push(usize::try_from(dim).map_err(|_| {
            src.error(
                format_args!("tensor {quoted} dimension {i}"),
                "a size this machine can address",
                dim,
            )
        })?);
    }
    shape.reverse();
    let id = src.u32(format_args!("tensor {quoted} type"))?;
    let dtype = layout::dtype(src.path, &name, id)?;
    let offset = src.u64(format_args!("tensor {quoted} offset"))?;
    let n_bytes = layout::tensor_bytes(src.path, &name, dtype, &shape)?;
    Ok(TensorInfo { name, dtype, shape, offset, n_bytes })
}

/// Turns offsets into absolute ones after checking alignment, bounds and overlaps.
fn place<'t>(
    path: &Path,
    tensors: impl Iterator<Item = &'t mut TensorInfo>,
    data_offset: u64,
    alignment: u64,
    file_len: u64,
) -> Result<()> {
    let mut in_order: Vec<&mut TensorInfo> = tensors.collect();
    in_order.sort_by_key(|t| t.offset);
    let mut previous: Option<(&str, u64)> = None;
    for tensor in in_order {
        let quoted = Quoted(&tensor.name);
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(FormatError::invalid(
                path,
                format_args!("tensor {quoted} offset"),
                format_args!("a multiple of {alignment}"),
                tensor.offset,
            ));
        }
        let start = data_offset.checked_add(tensor.offset);
        let end = start.and_then(|s| s.checked_add(tensor.n_bytes));
        let (Some(start), Some(end)) = (start, end.filter(|&e| e <= file_len)) else {
            return Err(FormatError::invalid(
                path,
                format_args!("tensor {quoted} data"),
                format_args!(
                    "{} bytes at offset {data_offset} + {}",
                    tensor.n_bytes, tensor.offset
                ),
                format_args!("a file of {file_len} bytes"),
            ));
        };
        if let Some((name, previous_end)) = previous
            && start < previous_end
        {
            return Err(FormatError::invalid(
                path,
                format_args!("tensor {quoted} offset"),
                format_args!(
                    "at least {}, the end of tensor {}",
                    previous_end - data_offset,
                    Quoted(name)
                ),
                tensor.offset,
            ));
        }
        tensor.offset = start;
        previous = Some((&tensor.name, end));
    }
    Ok(())
}
