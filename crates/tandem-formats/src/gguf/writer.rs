//! Writing GGUF files tensor by tensor, so that a converter never holds more than it works on.

use std::collections::HashSet;
use std::path::Path;

use super::value::Put;
use super::{MAGIC, Metadata, VERSION, layout};
use crate::text::Quoted;
use crate::{AtomicFile, DType, FormatError, Result};

/// A tensor to be written: everything but its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDecl {
    /// The tensor's name.
    pub name: String,
    /// How its weights are encoded.
    pub dtype: DType,
    /// Dimensions, row-major (slowest first).
    pub shape: Vec<usize>,
}

/// Writes one GGUF file: the header at once, then the tensors' bytes in the order of their declaration.
#[derive(Debug)]
pub struct Writer {
    file: AtomicFile,
    alignment: u64,
    tensors: Vec<(String, u64)>,
    /// The tensor that gets the next byte.
    current: usize,
    /// Bytes it already has.
    written: u64,
}

impl Writer {
    /// Starts a file and writes its header.
    ///
    /// # Errors
    /// When a declaration contradicts the format, or the file cannot be written.
    pub fn create(path: &Path, metadata: &Metadata, tensors: &[TensorDecl]) -> Result<Self> {
        let alignment = layout::alignment(path, metadata)?;
        let sizes = sizes(path, tensors)?;
        let mut header = Vec::new();
        encode_header(path, metadata, tensors, &sizes, alignment, &mut header)?;
        let mut file = AtomicFile::create(path)?;
        file.append(&header)?;
        pad(&mut file, header.len() as u64, alignment)?;
        let tensors = tensors.iter().map(|t| t.name.clone()).zip(sizes).collect();
        Ok(Self { file, alignment, tensors, current: 0, written: 0 })
    }

    /// Appends bytes of tensors, in order of declaration. A call may hold part of a tensor or several tensors:
    /// padding goes in between by itself.
    ///
    /// # Errors
    /// When there are more bytes than declared, or the file cannot be written.
    pub fn write_tensor_data(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(&(_, size)) = self.tensors.get(self.current) else {
                return Err(FormatError::invalid(
                    self.file.final_path(),
                    "tensor data",
                    "no more bytes than the tensors' shapes ask for",
                    format_args!("{} bytes after the last tensor", bytes.len()),
                ));
            };
            let missing = usize::try_from(size - self.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.file.append(now)?;
            self.written += now.len() as u64;
            bytes = later;
            if self.written == size {
                pad(&mut self.file, size, self.alignment)?;
                self.current += 1;
                self.written = 0;
            }
        }
        Ok(())
    }

    /// Gives the complete file its name.
    ///
    /// # Errors
    /// When bytes are missing, or the file cannot be written; then nothing is left behind.
    pub fn finish(self) -> Result<()> {
        if let Some((name, size)) = self.tensors.get(self.current) {
            return Err(FormatError::invalid(
                self.file.final_path(),
                format_args!("tensor {} data", Quoted(name)),
                format_args!("{size} bytes"),
                format_args!("{} bytes", self.written),
            ));
        }
        self.file.commit()
    }
}

fn sizes(path: &Path, tensors: &[TensorDecl]) -> Result<Vec<u64>> {
    let mut names = HashSet::new();
    tensors
        .iter()
        .map(|t| {
            if !names.insert(&t.name) {
                let field = format_args!("tensor {}", Quoted(&t.name)).to_string();
                return Err(FormatError::invalid(
                    path,
                    field,
                    "each name once",
                    "a second declaration",
                ));
            }
            layout::tensor_bytes(path, &t.name, t.dtype, &t.shape)
        })
        .collect()
}

fn encode_header(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorDecl],
    sizes: &[u64],
    alignment: u64,
    out: &mut Vec<u8>,
) -> Result<()> {
    out.extend_from_slice(&MAGIC);
    VERSION.put(out);
    (tensors.len() as u64).put(out);
    (metadata.len() as u64).put(out);
    for (key, value) in metadata.iter() {
        key.put(out);
        (value.value_type() as u32).put(out);
        value.encode(out);
    }
    let mut offset = 0u64;
    for (tensor, size) in tensors.iter().zip(sizes) {
        tensor.name.put(out);
        (tensor.shape.len() as u32).put(out);
        tensor.shape.iter().rev().for_each(|&d| (d as u64).put(out));
        tensor.dtype.ggml_id().put(out);
        offset.put(out);
        offset = offset
            .checked_add(*size)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| {
                let field = format_args!("tensor {} offset", Quoted(&tensor.name)).to_string();
                FormatError::invalid(
                    path,
                    field,
                    "a file size that fits 64 bits",
                    format_args!("{size} more bytes"),
                )
            })?;
    }
    Ok(())
}

fn pad(file: &mut AtomicFile, written: u64, alignment: u64) -> Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut missing = written.wrapping_neg() & (alignment - 1);
    while missing > 0 {
        let n = missing.min(ZEROS.len() as u64);
        file.append(&ZEROS[..n as usize])?;
        missing -= n;
    }
    Ok(())
}
