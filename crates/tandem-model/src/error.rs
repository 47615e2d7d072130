//! The one error type of this crate.

use std::path::{Path, PathBuf};

use tandem_formats::{FormatError, one_line_path};

/// Why a model could not be read, or what it was asked for could not be done.
///
/// Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that cannot be read, or whose content contradicts its format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A tokenizer that cannot be built, or a text that it refuses.
    #[error("{}: {message}", one_line_path(path))]
    Tokenizer {
        /// The file that the tokenizer comes from.
        path: PathBuf,
        /// What is wrong, on one line.
        message: String,
    },
    /// The model comes without a tokenizer: it can be computed with, but not talked to.
    #[error("{}: tokenizer: expected {expected}, found none", one_line_path(path))]
    NoTokenizer {
        /// The model.
        path: PathBuf,
        /// Where a tokenizer would be.
        expected: &'static str,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
    /// A chat template that cannot be compiled or rendered, or that refuses the conversation.
    #[error("chat template: {message}")]
    Template {
        /// What is wrong, on one line.
        message: String,
    },
    /// A download that failed.
    #[error("{id}: {message}")]
    Hub {
        /// The model, as the user named it.
        id: String,
        /// What went wrong and what to do about it, on one line.
        message: String,
    },
}

impl ModelError {
    /// A [`ModelError::Tokenizer`] from anything printable; line breaks become spaces.
    pub(crate) fn tokenizer(path: &Path, message: impl ToString) -> Self {
        Self::Tokenizer { path: path.to_owned(), message: one_line(&message.to_string()) }
    }
}

/// The text on one line: errors of libraries sometimes come with line breaks, and quote texts of any length.
pub(crate) fn one_line(text: &str) -> String {
    tandem_formats::one_line(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, ModelError>;
