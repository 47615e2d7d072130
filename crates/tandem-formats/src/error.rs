//! The one error type of this crate.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::text::{one_line, one_line_path};

/// Why a file could not be read or written.
///
/// Every message is one line that starts with the file's path.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The operating system refused.
    #[error("{}: {action}: {source}", one_line_path(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done, as in "cannot read 16 bytes at offset 8".
        action: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file's content contradicts its format.
    #[error("{}: {field}: expected {expected}, found {found}", one_line_path(path))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field, as in "tensor `blk.0.attn_q.weight` offset".
        field: String,
        /// What the format asks for there.
        expected: String,
        /// What is there.
        found: String,
    },
}

impl FormatError {
    /// An [`FormatError::Invalid`] from anything printable, text from the file included: see [`one_line`].
    pub fn invalid(
        path: &Path,
        field: impl Display,
        expected: impl Display,
        found: impl Display,
    ) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            field: one_line(field),
            expected: one_line(expected),
            found: one_line(found),
        }
    }

    /// An [`FormatError::Io`].
    pub fn io(path: &Path, action: impl Display, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), action: one_line(action), source }
    }
}

/// Shorthand of this crate.
pub type Result<T> = std::result::Result<T, FormatError>;
