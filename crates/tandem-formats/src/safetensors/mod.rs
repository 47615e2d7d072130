//! safetensors files: tensors by name, as Hugging Face distributes checkpoints.
//!
//! Layout: the header's length as 8 little-endian bytes; the header, JSON that gives each tensor's type, shape and
//! byte range; the tensors' bytes. The ranges must cover the data without holes or overlaps: that is the format's
//! own rule, and what makes a damaged file noticed rather than read.

mod dtype;
mod header;
mod json;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;

pub use dtype::Dtype;
pub use header::{Header, parse_header};
pub use writer::{Tensor, write};

use crate::text::Quoted;
use crate::{FormatError, InputFile, Result, blocks};

/// Longest header the format allows, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where one tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Dimensions, row-major (slowest first). None for a single number; may hold zeros.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes of data.
    pub n_bytes: u64,
}

/// An open safetensors file whose header has been checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    file: InputFile,
    header: Header,
}

impl SafetensorsFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// When the file cannot be read or contradicts the format.
    pub fn open(path: &Path) -> Result<Self> {
        let file = InputFile::open(path)?;
        let header = parse_header(path, &mut file.cursor(), file.len())?;
        Ok(Self { file, header })
    }

    /// The file itself, for reading parts of tensors.
    pub fn file(&self) -> &InputFile {
        &self.file
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.header.tensors
    }

    /// The file's free-form strings (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The bytes of one tensor.
    ///
    /// # Errors
    /// When there is no such tensor, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.info(name)?;
        self.file.read_vec(info.offset, info.n_bytes)
    }

    /// The elements of an F32, F16 or BF16 tensor.
    ///
    /// # Errors
    /// When there is no such tensor, it has another type, or the file cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let dtype =
            info.dtype.to_weights().ok_or_else(|| self.wrong_type(info, "F32, F16 or BF16"))?;
        let bytes = self.read(name)?;
        let mut values = vec![0.0; bytes.len() / info.dtype.size()];
        blocks::dequantize(dtype, &bytes, &mut values);
        Ok(values)
    }

    /// The elements of an I32 tensor.
    ///
    /// # Errors
    /// When there is no such tensor, it has another type, or the file cannot be read.
    pub fn read_i32(&self, name: &str) -> Result<Vec<i32>> {
        let info = self.info(name)?;
        if info.dtype != Dtype::I32 {
            return Err(self.wrong_type(info, "I32"));
        }
        let bytes = self.read(name)?;
        Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.tensors.get(name).ok_or_else(|| {
            let field = format_args!("tensor {}", Quoted(name)).to_string();
            FormatError::invalid(self.file.path(), field, "to be in the file", "no such tensor")
        })
    }

    fn wrong_type(&self, info: &TensorInfo, expected: &str) -> FormatError {
        let field = format_args!("tensor {} dtype", Quoted(&info.name)).to_string();
        FormatError::invalid(self.file.path(), field, expected, info.dtype.name())
    }
}
