//! Opening the library.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::LoadDynamicError;
use ort::environment::Environment;
use tandem_cpu::libraries::{SharedLibrary, loader_message};

use super::error::{OnnxRuntimeError, one_line};

/// ONNX Runtime as the package `onnxruntime` brings it.
pub const LIBRARY: SharedLibrary = SharedLibrary {
    name: "ONNX Runtime",
    file: "libonnxruntime.so",
    variable: "TANDEM_ONNXRUNTIME",
    in_packages: Some("onnxruntime/capi"),
    advice: "`pip install onnxruntime` brings it",
};

/// The oldest version that can be used, `1.N`: its MatMulNBits takes weights of 8 bits.
pub const OLDEST_VERSION: u32 = ort::MINOR_VERSION;

/// The process's ONNX Runtime, and the file that it came from.
static OPENED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// Opens the library at `path`, unless that is done; answers its file and the process's environment of it.
pub(super) fn open(given: Option<&Path>) -> Result<(PathBuf, Environment), OnnxRuntimeError> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((path, environment)) = &*opened {
        return match given {
            Some(other) if LIBRARY.find(Some(other))? != *path => Err(OnnxRuntimeError::Library {
                path: other.to_owned(),
                message: format!("this process has opened {} already", path.display()),
            }),
            _ => Ok((path.clone(), environment.clone())),
        };
    }
    let path = LIBRARY.find(given)?;
    // What it warns of, it cannot help; what goes wrong comes back as an error.
    let silent = Arc::new(|_: ort::logging::LogLevel, _: &str, _: &str, _: &str, _: &str| {});
    let environment = ort::init_from(&path)
        .map_err(|error| not_loaded(&path, error))?
        .with_name("tandem")
        .with_telemetry(false)
        .with_logger(silent)
        .build()
        .map_err(|e| OnnxRuntimeError::Library {
            path: path.clone(),
            message: one_line(e.message()),
        })?;
    environment.set_log_level(ort::logging::LogLevel::Error);
    *opened = Some((path.clone(), environment.clone()));
    Ok((path, environment))
}

/// The version of a library, as its file's name has it.
pub fn version(path: &Path) -> String {
    let file = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix(LIBRARY.file).and_then(|rest| rest.strip_prefix('.'));
    version.unwrap_or("of unknown version").to_owned()
}

fn not_loaded(path: &Path, error: LoadDynamicError) -> OnnxRuntimeError {
    match error {
        LoadDynamicError::BadVersion { version_str, path } => OnnxRuntimeError::Version {
            path,
            expected: format!("1.{OLDEST_VERSION}"),
            found: version_str,
        },
        LoadDynamicError::Dlopen { error, path } => {
            OnnxRuntimeError::Library { path, message: loader_message(&error) }
        }
        LoadDynamicError::MissingApi { path } => OnnxRuntimeError::Library {
            path,
            message: "expected the function OrtGetApiBase, found a library without it".to_owned(),
        },
        other @ LoadDynamicError::InvalidVersionString => {
            OnnxRuntimeError::Library { path: path.to_owned(), message: other.to_string() }
        }
    }
}
