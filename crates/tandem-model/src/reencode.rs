//! Weights of a checkpoint in another encoding, a few megabytes at a time.

use std::ops::Range;

use rayon::prelude::*;
use tandem_formats::{DType, FormatError, blocks};

use crate::checkpoint::Entry;
use crate::error::Result;
use crate::{Checkpoint, TensorId};

/// Weights re-encoded at once. Bounds memory: three buffers of 4 bytes a weight at most.
const CHUNK_WEIGHTS: usize = 4 << 20;

/// Weights one thread re-encodes at a time.
const TASK_WEIGHTS: usize = 64 << 10;

/// The rows of a tensor in pieces that [`Reencoder::rows`] takes up one after another.
pub fn chunks(entry: Entry) -> impl Iterator<Item = Range<usize>> {
    let rows = (CHUNK_WEIGHTS / entry.cols).clamp(1, entry.rows);
    (0..entry.rows).step_by(rows).map(move |start| start..(start + rows).min(entry.rows))
}

/// The three stages of a chunk, kept from chunk to chunk.
#[derive(Default)]
pub struct Reencoder {
    source: Vec<u8>,
    weights: Vec<f32>,
    target: Vec<u8>,
}

impl Reencoder {
    /// Rows of a tensor, encoded as `dtype`; the file's own bytes where that is their encoding.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows`], and where `dtype` cannot be written.
    ///
    /// # Panics
    /// If the rows lie outside the tensor, or are no whole number of blocks of `dtype`.
    pub fn rows(
        &mut self,
        checkpoint: &Checkpoint,
        id: TensorId,
        rows: Range<usize>,
        dtype: DType,
    ) -> Result<&[u8]> {
        let entry = checkpoint.entry(id);
        let n = rows.len() * entry.cols;
        self.source.resize(rows.len() * entry.row_bytes(), 0);
        checkpoint.read_rows(id, rows, &mut self.source)?;
        if dtype == entry.dtype {
            return Ok(&self.source);
        }
        self.weights.resize(n, 0.0);
        self.target.resize(n / dtype.block_len() * dtype.block_bytes(), 0);
        // Whole rows, so whole blocks of both encodings.
        let task = entry.cols * (TASK_WEIGHTS / entry.cols).max(1);
        let bytes = |t: DType| task / t.block_len() * t.block_bytes();
        self.source
            .par_chunks(bytes(entry.dtype))
            .zip(self.weights.par_chunks_mut(task))
            .zip(self.target.par_chunks_mut(bytes(dtype)))
            .try_for_each(|((source, weights), target)| {
                blocks::dequantize(entry.dtype, source, weights);
                blocks::quantize(dtype, weights, target)
            })
            .map_err(|e| {
                FormatError::invalid(
                    checkpoint.path(),
                    "target type",
                    "a type that can be written",
                    e,
                )
            })?;
        Ok(&self.target)
    }
}
