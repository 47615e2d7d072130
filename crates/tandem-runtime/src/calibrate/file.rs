//! Measurements in files: one for each model and device in a folder.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tandem_formats::{AtomicFile, FormatError, InputFile};

use super::identity::Identity;

/// Files of measurements have a few kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why measurements cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// There are none.
    #[error("nothing is measured for this model and device; `tandem calibrate` does it")]
    Missing,
    /// The file.
    #[error("{0}; `tandem calibrate` makes it anew")]
    File(#[from] FormatError),
    /// It has no sense.
    #[error("{path}: {message}; `tandem calibrate` makes it anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// It was made with something else.
    #[error(
        "{path}: measured with {field} '{measured}', now it is '{now}'; `tandem calibrate` measures again"
    )]
    Stale {
        /// The file.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// As it was.
        measured: String,
        /// As it is.
        now: String,
    },
}

/// What is measured once for a machine, and kept.
pub(super) trait Measured: Serialize + DeserializeOwned {
    /// What it depends on.
    fn identity(&self) -> &Identity;

    /// Whether its numbers can have been measured; else what is wrong.
    fn check(&self) -> Result<(), String>;
}

/// The file for a model and a device in `folder`.
pub(super) fn path(folder: &Path, identity: &Identity) -> PathBuf {
    let plain = |text: &str| {
        let letters = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
        let text: String = letters.collect();
        let words: Vec<_> = text.split('-').filter(|word| !word.is_empty()).collect();
        // File names may have 255 bytes.
        words.join("-").chars().take(96).collect::<String>().to_lowercase()
    };
    folder.join(format!("{}.{}.json", plain(&identity.model), plain(&identity.device)))
}

/// Reads what was measured for `now`.
///
/// # Errors
/// When there is nothing, or what there is has been made with another machine, driver or program, or is damaged.
pub(super) fn load<T: Measured>(folder: &Path, now: &Identity) -> Result<T, CalibrationError> {
    let path = path(folder, now);
    if !path.exists() {
        return Err(CalibrationError::Missing);
    }
    let text = InputFile::open(&path)?.read_all(MAX_BYTES)?;
    let damaged = |message| CalibrationError::Damaged { path: path.clone(), message };
    let measured: T = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    measured.check().map_err(damaged)?;
    match measured.identity().difference(now) {
        Some((field, measured, now)) => Err(CalibrationError::Stale { path, field, measured, now }),
        None => Ok(measured),
    }
}

/// Writes it to its file; answers where that is. What was there before is still there where that fails.
pub(super) fn save<T: Measured>(measured: &T, folder: &Path) -> Result<PathBuf, CalibrationError> {
    let path = path(folder, measured.identity());
    let failed = |message| CalibrationError::Damaged { path: path.clone(), message };
    std::fs::create_dir_all(folder).map_err(|e| failed(format!("cannot make its folder: {e}")))?;
    let text = serde_json::to_string_pretty(measured).map_err(|e| failed(e.to_string()))?;
    let mut file = AtomicFile::create(&path)?;
    file.append(text.as_bytes())?;
    file.commit()?;
    Ok(path)
}
