//! Checkpoint to GGUF: re-encodes every tensor, a few megabytes at a time.
//!
//! Router and norms stay f32: they are small and decide a lot. What is written last is renamed last, so a file of
//! the final name is always whole.

use std::path::Path;

use tandem_formats::gguf::{Metadata, TensorDecl, Writer};
use tandem_formats::{DType, FormatError};

use crate::catalogue::Component;
use crate::error::{ModelError, Result};
use crate::reencode::{Reencoder, chunks};
use crate::{Checkpoint, TensorId};

/// Encodings of the file to be written.
#[derive(Clone, Copy, Debug)]
pub struct ConvertTypes {
    /// Attention projections and experts.
    pub matrices: DType,
    /// Embedding and lm_head.
    pub output: DType,
}

impl ConvertTypes {
    /// Encodings that can be written.
    pub const WRITABLE: [DType; 5] =
        [DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0];

    /// Embedding and lm_head as `matrices`, but of 8 bits where those have 4.
    pub fn with_default_output(matrices: DType) -> Self {
        let output = if matrices == DType::Q4_0 { DType::Q8_0 } else { matrices };
        Self { matrices, output }
    }

    /// The encoding of a tensor in the file.
    pub fn of(self, id: TensorId) -> DType {
        match id.component() {
            Component::Embedding | Component::LmHead => self.output,
            Component::Attention | Component::Experts => self.matrices,
            Component::Router | Component::Norm | Component::Bias => DType::F32,
        }
    }
}

/// Writes `checkpoint` to `out` as GGUF. `progress` is told the number of weights done since it was last called;
/// it answers whether to go on.
///
/// # Errors
/// Where a tensor does not fit its encoding (rows that are no whole number of blocks), where reading or writing
/// fails, and [`ModelError::Interrupted`] where `progress` says stop. No file of the name `out` is left then, and
/// one that was there before is untouched.
pub fn convert(
    checkpoint: &Checkpoint,
    out: &Path,
    types: ConvertTypes,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<()> {
    let mut keys = metadata(checkpoint, types)?;
    match checkpoint.text() {
        Ok(text) => text.to_gguf(&mut keys, checkpoint.config().vocab_size)?,
        // A model without a tokenizer is a model all the same (the tests have one).
        Err(ModelError::NoTokenizer { .. }) => {}
        Err(e) => return Err(e),
    }
    let tensors = declare(checkpoint, types)?;
    let mut writer = Writer::create(out, &keys, &tensors)?;
    let mut reencoder = Reencoder::default();
    for (id, entry) in checkpoint.tensors() {
        for rows in chunks(entry) {
            let weights = (rows.len() * entry.cols) as u64;
            writer.write_tensor_data(reencoder.rows(checkpoint, id, rows, types.of(id))?)?;
            if !progress(weights) {
                return Err(ModelError::Interrupted);
            }
        }
    }
    Ok(writer.finish()?)
}

/// The tensors of the file: experts of a layer stacked into one, the rest as they are.
fn declare(checkpoint: &Checkpoint, types: ConvertTypes) -> Result<Vec<TensorDecl>> {
    let config = checkpoint.config();
    let mut tensors = Vec::new();
    for (id, entry) in checkpoint.tensors() {
        let dtype = types.of(id);
        let gguf = id.gguf_name();
        if dtype.bytes_for(entry.cols).is_none() {
            return Err(FormatError::invalid(
                checkpoint.path(),
                format!("columns of `{}`", gguf.name),
                format!("a multiple of {} for type {dtype}", dtype.block_len()),
                entry.cols,
            )
            .into());
        }
        let shape = match gguf.expert {
            Some(0) => vec![config.n_experts, entry.rows, entry.cols],
            Some(_) => continue,
            None if id.is_vector() => vec![entry.cols],
            None => vec![entry.rows, entry.cols],
        };
        tensors.push(TensorDecl { name: gguf.name, dtype, shape });
    }
    Ok(tensors)
}

fn metadata(checkpoint: &Checkpoint, types: ConvertTypes) -> Result<Metadata> {
    let mut keys = Metadata::default();
    keys.insert("general.architecture", "phimoe");
    keys.insert("general.name", checkpoint.name());
    keys.insert("general.file_type", file_type(types.matrices));
    keys.insert("general.quantization_version", 2u32);
    checkpoint.config().to_gguf(&mut keys);
    checkpoint.special_ids().to_gguf(&mut keys);
    Ok(keys)
}

/// GGML's number for "mostly this type".
fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q8_0 => 7,
        DType::BF16 => 32,
        other => other.ggml_id(), // not writable; refused before this matters
    }
}
