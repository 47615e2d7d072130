//! A model without its weights: what the small files of its folder say.

use std::path::{Path, PathBuf};

use tandem_formats::DType;

use super::huggingface;
use crate::config::{PhimoeConfig, SpecialIds};
use crate::error::Result;
use crate::text::{Text, TextSource};

/// Shape, special ids and text of a model whose weights are elsewhere or in another form.
pub struct Outline {
    /// The folder.
    pub path: PathBuf,
    /// The model's shape.
    pub config: PhimoeConfig,
    /// Begin, stop and padding ids.
    pub special: SpecialIds,
    /// The encoding of the weights that the config states.
    pub dtype: DType,
}

impl Outline {
    /// Reads `config.json` and, where it is there, `generation_config.json`.
    ///
    /// # Errors
    /// Where there is no config, or one that is damaged or of another architecture.
    pub fn open(folder: &Path) -> Result<Self> {
        huggingface::outline(folder)
    }

    /// Whether `path` is a folder without any file of weights.
    ///
    /// # Errors
    /// Where its index cannot be read.
    pub fn is_all_of(path: &Path) -> Result<bool> {
        Ok(path.is_dir() && !huggingface::has_weights(path)?)
    }

    /// Loads the tokenizer and the chat template.
    ///
    /// # Errors
    /// As [`super::Checkpoint::text`].
    pub fn text(&self) -> Result<Text> {
        TextSource::Folder.load(&self.path, self.config.vocab_size)
    }
}
