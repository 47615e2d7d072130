//! A model on disk: where each tensor of the catalogue lies, and how to read it.
//!
//! Opening a checkpoint reads headers only. Every tensor is found, and its shape and encoding are checked against
//! the config, before the first weight is read, so that a wrong file costs a user a moment and not a minute.

mod gguf;
mod huggingface;
mod outline;
mod summary;
mod vocab;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tandem_formats::{DType, FormatError, InputFile, blocks, folder_of};

use crate::catalogue::LayerTensor;
use crate::config::{PhimoeConfig, SpecialIds};
use crate::error::Result;
use crate::text::{Text, TextSource};
use crate::{TensorId, catalogue};

pub use outline::Outline;
pub use summary::{ComponentSummary, Summary};

/// An opened model: config, tensor places, and what its text side is made from.
pub struct Checkpoint {
    path: PathBuf,
    name: String,
    config: PhimoeConfig,
    special: SpecialIds,
    files: Vec<InputFile>,
    entries: HashMap<TensorId, Entry>,
    container: Container,
    text: TextSource,
}

/// The kind of files a checkpoint is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A folder with `config.json` and safetensors files.
    HuggingFace,
    /// One GGUF file.
    Gguf,
}

/// Where a tensor lies and how it is encoded. Rows follow one another without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Encoding in the file.
    pub dtype: DType,
    /// Rows; 1 for vectors.
    pub rows: usize,
    /// Weights in a row.
    pub cols: usize,
    file: usize,
    offset: u64,
}

impl Entry {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        // Readers of files refuse rows that are no whole number of blocks.
        self.cols / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// Bytes of the tensor.
    pub fn n_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }
}

impl Checkpoint {
    /// Opens a HF model folder or a GGUF file.
    ///
    /// # Errors
    /// Where the path is neither; where a header is damaged; where a tensor of the model is missing or its shape
    /// contradicts the config.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return huggingface::open(path);
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if matches!(extension, "safetensors" | "json") {
            return Err(FormatError::invalid(
                path,
                "model",
                "a GGUF file, or the folder that holds config.json",
                format!("a .{extension} file; give its folder `{}`", folder_of(path).display()),
            )
            .into());
        }
        gguf::open(path)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model is called: by its GGUF file, on the hub it comes from, or by its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's shape.
    pub fn config(&self) -> &PhimoeConfig {
        &self.config
    }

    /// The shape, to be changed before use (as a setting that turns the sliding window off does).
    pub fn config_mut(&mut self) -> &mut PhimoeConfig {
        &mut self.config
    }

    /// Begin, stop and padding ids.
    pub fn special_ids(&self) -> &SpecialIds {
        &self.special
    }

    /// The kind of files.
    pub fn container(&self) -> Container {
        self.container
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(InputFile::len).sum()
    }

    /// Place and encoding of a tensor.
    ///
    /// # Panics
    /// If `id` is no tensor of [`catalogue()`] for this config; opening made sure that all of those are there.
    pub fn entry(&self, id: TensorId) -> Entry {
        self.entries[&id]
    }

    /// All tensors in catalogue order.
    pub fn tensors(&self) -> impl Iterator<Item = (TensorId, Entry)> + '_ {
        catalogue(&self.config).map(|id| (id, self.entry(id)))
    }

    /// The model's numbers. See [`Summary::of`].
    pub fn summary(&self) -> Summary {
        Summary::of(&self.config, |id| self.entry(id).dtype)
    }

    /// Reads the encoded bytes of some rows of a tensor.
    ///
    /// # Errors
    /// Where the file cannot be read, or holds a weight (or a block's scale) that is NaN or infinite.
    ///
    /// # Panics
    /// If `out` is not exactly as long as those rows, or they lie outside the tensor.
    pub fn read_rows(&self, id: TensorId, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let entry = self.entry(id);
        assert!(rows.end <= entry.rows, "rows {rows:?} of {id:?} with {} rows", entry.rows);
        assert_eq!(out.len(), rows.len() * entry.row_bytes(), "bytes of rows {rows:?} of {id:?}");
        let file = &self.files[entry.file];
        file.read_exact_at(entry.offset + (rows.start * entry.row_bytes()) as u64, out)?;
        match blocks::first_non_finite(entry.dtype, out) {
            None => Ok(()),
            Some(at) => Err(FormatError::invalid(
                file.path(),
                format!("tensor `{}`", self.tensor_name(id)),
                "finite weights",
                format!(
                    "NaN or infinity at row {}, column {}",
                    rows.start + at / entry.cols,
                    at % entry.cols
                ),
            )
            .into()),
        }
    }

    /// Reads a whole tensor as f32, row-major.
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    pub fn read_f32(&self, id: TensorId) -> Result<Vec<f32>> {
        let entry = self.entry(id);
        let mut bytes = vec![0; entry.n_bytes()];
        self.read_rows(id, 0..entry.rows, &mut bytes)?;
        let mut weights = vec![0.0; entry.rows * entry.cols];
        blocks::dequantize(entry.dtype, &bytes, &mut weights);
        Ok(weights)
    }

    /// Loads the tokenizer and the chat template.
    ///
    /// # Errors
    /// Where there is no tokenizer, where it is damaged, or where it has ids beyond the model's vocabulary.
    pub fn text(&self) -> Result<Text> {
        self.text.load(&self.path, self.config.vocab_size)
    }

    /// The name of a tensor in this checkpoint's files.
    fn tensor_name(&self, id: TensorId) -> String {
        match self.container {
            Container::HuggingFace => id.hf_name(),
            Container::Gguf => match id.gguf_name() {
                tandem @ crate::catalogue::GgufName { expert: None, .. } => tandem.name,
                stacked => {
                    format!("{}` expert `{}", stacked.name, stacked.expert.unwrap_or_default())
                }
            },
        }
    }
}

/// A tensor as some file's header describes it.
struct Found<'a> {
    dtype: DType,
    shape: &'a [usize],
    offset: u64,
    file: usize,
    /// Which matrix of it is meant, where it is a stack of all experts' matrices.
    expert: Option<usize>,
}

/// Looks up every tensor of the catalogue with `find` (which also says what to call it in messages) and checks
/// its shape.
fn place_all<'a>(
    config: &PhimoeConfig,
    missing_from: &Path,
    files: &[InputFile],
    mut find: impl FnMut(TensorId) -> Result<(String, Option<Found<'a>>)>,
) -> Result<HashMap<TensorId, Entry>> {
    let mut entries = HashMap::new();
    for id in catalogue(config) {
        let (name, found) = find(id)?;
        let Some(found) = found else {
            return Err(FormatError::invalid(
                missing_from,
                format!("tensor `{name}`"),
                "to be there (the config asks for it)",
                "no such tensor",
            )
            .into());
        };
        let (rows, cols) = id.shape(config);
        let expected = match found.expert {
            Some(_) => vec![config.n_experts, rows, cols],
            None if id.is_vector() => vec![cols],
            None => vec![rows, cols],
        };
        let path = files[found.file].path();
        if found.shape != expected {
            let field = format!("tensor `{name}` shape");
            let expected = format!("{expected:?} as the config says");
            return Err(
                FormatError::invalid(path, field, expected, format!("{:?}", found.shape)).into()
            );
        }
        if found.dtype.bytes_for(cols).is_none() {
            let expected =
                format!("columns divisible by {} for {}", found.dtype.block_len(), found.dtype);
            return Err(
                FormatError::invalid(path, format!("tensor `{name}`"), expected, cols).into()
            );
        }
        let mut entry =
            Entry { dtype: found.dtype, rows, cols, file: found.file, offset: found.offset };
        if let Some(expert) = found.expert {
            entry.offset += (expert * entry.n_bytes()) as u64;
        }
        entries.insert(id, entry);
    }
    refuse_more_layers(config, files, find)?;
    Ok(entries)
}

/// A model that is cut off after some layers computes something all the same: nobody would notice.
fn refuse_more_layers<'a>(
    config: &PhimoeConfig,
    files: &[InputFile],
    mut find: impl FnMut(TensorId) -> Result<(String, Option<Found<'a>>)>,
) -> Result<()> {
    let next = u16::try_from(config.n_layers).unwrap_or(u16::MAX);
    let (name, found) = find(TensorId::Layer(next, LayerTensor::AttnNormWeight))?;
    let Some(found) = found else { return Ok(()) };
    Err(FormatError::invalid(
        files[found.file].path(),
        format!("tensor `{name}`"),
        format!("only layers below {next} as the config says"),
        format!("layer {next}"),
    )
    .into())
}
