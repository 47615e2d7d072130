//! A folder with an export, checked before it is handed to a library that may say less of what is wrong.

use std::fs;
use std::path::{Component, Path, PathBuf};

use prost::Message;
use tandem_formats::{FormatError, InputFile};
use tandem_model::Outline;

use super::error::OnnxRuntimeError;
use crate::export::MODEL;
use crate::proto::{DataLocation, ModelProto, TensorProto};

/// A graph of 32 layers has 3 MB; weights lie in other files.
const MAX_GRAPH_BYTES: u64 = 512 << 20;

/// An export whose files are there.
pub struct ExportFolder {
    /// Shape, special ids and text of the model.
    pub outline: Outline,
    /// The graph's file.
    pub graph: PathBuf,
    /// Bytes of the graph and its weights.
    pub bytes: u64,
}

impl ExportFolder {
    /// Whether a folder has a graph.
    pub fn is_one(path: &Path) -> bool {
        path.join(MODEL).exists()
    }

    /// Reads the small files and the graph, and looks whether the weights that it names are there.
    ///
    /// # Errors
    /// Where a file is missing or too short, or is not what it should be.
    pub fn open(folder: &Path) -> Result<Self, OnnxRuntimeError> {
        let outline = Outline::open(folder)?;
        let graph = folder.join(MODEL);
        let content = InputFile::open(&graph)?.read_all(MAX_GRAPH_BYTES)?;
        let model = ModelProto::decode(&content[..])
            .map_err(|e| FormatError::invalid(&graph, "content", "an ONNX model", e))?;
        let tensors = model.graph.map(|graph| graph.initializer).unwrap_or_default();
        let mut files: Vec<(String, u64)> = Vec::new();
        for tensor in &tensors {
            let Some((name, end)) = place(&graph, tensor)? else { continue };
            match files.iter_mut().find(|(file, _)| *file == name) {
                Some((_, longest)) => *longest = end.max(*longest),
                None => files.push((name, end)),
            }
        }
        let mut bytes = content.len() as u64;
        for (name, needed) in files {
            bytes += check(&folder.join(name), needed)?;
        }
        Ok(Self { outline, graph, bytes })
    }
}

/// The file with a tensor's content, and where the content ends in it; `None` of one that is in the graph.
fn place(graph: &Path, tensor: &TensorProto) -> Result<Option<(String, u64)>, FormatError> {
    if tensor.data_location != Some(DataLocation::External.into()) {
        return Ok(None);
    }
    let field = |key: &str| format!("{key} of `{}`", tensor.name);
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key);
    let number = |key: &str| match entry(key) {
        None => Ok(0),
        Some(entry) => entry.value.parse::<u64>().map_err(|_| {
            FormatError::invalid(graph, field(key), "a number of bytes", &entry.value)
        }),
    };
    let location = entry("location").map_or("", |entry| entry.value.as_str());
    let mut parts = Path::new(location).components();
    let is_beside = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
    if !is_beside {
        let expected = "the name of a file beside the graph";
        return Err(FormatError::invalid(graph, field("location"), expected, location));
    }
    let end = number("offset")?.saturating_add(number("length")?);
    Ok(Some((location.to_owned(), end)))
}

/// The file's length, which is enough.
fn check(path: &Path, needed: u64) -> Result<u64, FormatError> {
    let found = fs::metadata(path).map_err(|e| FormatError::io(path, "cannot open", e))?.len();
    if found < needed {
        return Err(FormatError::invalid(
            path,
            "length",
            format!("at least {needed} bytes"),
            found,
        ));
    }
    Ok(found)
}
