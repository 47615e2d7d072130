//! GGUF files: metadata and tensors in one file, as llama.cpp and its relatives exchange them.
//!
//! Layout, all little-endian: magic `GGUF`, version, tensor count, metadata count; the metadata entries; the tensor
//! infos; padding; the tensors' bytes, each aligned to `general.alignment` (32 unless the metadata says otherwise).
//! Version 3 is written; 2 has the same layout and is read as well. Version 1 (32-bit lengths) and big-endian
//! files are refused. GGUF lists dimensions fastest first; everything here is row-major, slowest first.

mod header;
mod layout;
mod metadata;
mod source;
mod value;
mod writer;

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::Path;

pub use header::{Header, parse_header};
pub use metadata::Metadata;
pub use value::{Array, Value, ValueType};
pub use writer::{TensorDecl, Writer};

use crate::text::Quoted;
use crate::{DType, FormatError, InputFile, Result};

const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMS: usize = 4;

/// Where one tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// How its weights are encoded.
    pub dtype: DType,
    /// Dimensions, row-major (slowest first): the reverse of the order in the file. 1 to 4 of them, none zero.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes of data.
    pub n_bytes: u64,
}

/// An open GGUF file whose header has been checked.
#[derive(Debug)]
pub struct GgufFile {
    file: InputFile,
    header: Header,
}

impl GgufFile {
    /// Opens a file and checks its header: every tensor lies within the file and apart from the others.
    ///
    /// # Errors
    /// When the file cannot be read or contradicts the format.
    pub fn open(path: &Path) -> Result<Self> {
        let file = InputFile::open(path)?;
        let header = parse_header(path, &mut BufReader::new(file.cursor()), file.len())?;
        Ok(Self { file, header })
    }

    /// The file itself, for reading parts of tensors.
    pub fn file(&self) -> &InputFile {
        &self.file
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.header.tensors
    }

    /// The bytes of one tensor.
    ///
    /// # Errors
    /// When there is no such tensor, or the file cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.header.tensors.get(name).ok_or_else(|| {
            let field = format_args!("tensor {}", Quoted(name)).to_string();
            FormatError::invalid(self.file.path(), field, "to be in the file", "no such tensor")
        })?;
        self.file.read_vec(info.offset, info.n_bytes)
    }
}
