//! HF model folders: `config.json`, one safetensors file or several with an index.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use tandem_formats::safetensors::{SafetensorsFile, TensorInfo};
use tandem_formats::{FormatError, InputFile};

use super::{Checkpoint, Container, Found, Outline, place_all};
use crate::config::{PhimoeConfig, SpecialIds, weight_type};
use crate::error::Result;
use crate::text::TextSource;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Linux has no longer names.
const MAX_FILE_NAME: usize = 255;

/// Configs have a few kilobytes. Parsed JSON takes up to twenty times its length, so this is no more generous than it
/// must be.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// An index names every tensor, but only once.
const MAX_INDEX_BYTES: u64 = 64 << 20;

pub(super) fn open(folder: &Path) -> Result<Checkpoint> {
    let Outline { config, special, .. } = outline(folder)?;
    let shards = shard_paths(folder)?
        .iter()
        .map(|path| SafetensorsFile::open(path))
        .collect::<tandem_formats::Result<Vec<_>>>()?;
    let tensors = merge(&shards)?;
    let files = shards
        .iter()
        .map(|shard| InputFile::open(shard.file().path()))
        .collect::<tandem_formats::Result<Vec<_>>>()?;
    let entries = place_all(&config, folder, &files, |id| {
        let name = id.hf_name();
        let found = match tensors.get(name.as_str()) {
            None => None,
            Some(&(file, info)) => Some(Found {
                dtype: info.dtype.to_weights().ok_or_else(|| {
                    let field = format!("tensor `{name}` type");
                    FormatError::invalid(
                        files[file].path(),
                        field,
                        "F32, F16 or BF16",
                        info.dtype.name(),
                    )
                })?,
                shape: &info.shape,
                offset: info.offset,
                file,
                expert: None,
            }),
        };
        Ok((name, found))
    })?;
    Ok(Checkpoint {
        path: folder.to_owned(),
        name: model_name(folder),
        config,
        special,
        files,
        entries,
        container: Container::HuggingFace,
        text: TextSource::Folder,
    })
}

/// The folder's name. In the hub's cache, where that is a revision, the name of the repository, which a folder
/// `models--organisation--name` above it has.
fn model_name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let names: Vec<_> =
        whole.components().rev().map(|part| part.as_os_str().to_string_lossy()).collect();
    let repository = names.iter().find_map(|name| name.strip_prefix("models--"));
    match repository.and_then(|name| name.rsplit("--").next()) {
        Some(name) => name.to_owned(),
        None => names[0].to_string(),
    }
}

/// What `config.json` and `generation_config.json` say.
pub(super) fn outline(folder: &Path) -> Result<Outline> {
    let config_path = folder.join("config.json");
    let config_json = InputFile::open(&config_path)?.read_all(MAX_CONFIG_BYTES)?;
    let config = PhimoeConfig::from_json_bytes(&config_path, &config_json)?;
    let special = special_ids(folder, &config_path, &config_json, config.vocab_size)?;
    let dtype = weight_type(&config_path, &config_json)?;
    Ok(Outline { path: folder.to_owned(), config, special, dtype })
}

/// `generation_config.json` has the last word on stop ids; `config.json` usually names only one of them.
fn special_ids(
    folder: &Path,
    config_path: &Path,
    config_json: &[u8],
    vocab_size: usize,
) -> Result<SpecialIds> {
    let generation_path = folder.join("generation_config.json");
    let (path, special) = if generation_path.exists() {
        let json = InputFile::open(&generation_path)?.read_all(MAX_CONFIG_BYTES)?;
        (&*generation_path, SpecialIds::from_json_bytes(&generation_path, &json)?)
    } else {
        (config_path, SpecialIds::from_json_bytes(config_path, config_json)?)
    };
    special.check_fits(path, vocab_size)?;
    Ok(special)
}

/// Whether any file with weights is there.
pub(super) fn has_weights(folder: &Path) -> Result<bool> {
    let index = folder.join(INDEX);
    let shards = if index.exists() { indexed_shards(folder, &index)? } else { Vec::new() };
    Ok(shards.iter().chain([&folder.join(SINGLE)]).any(|file| file.exists()))
}

/// The files that hold the tensors, each once.
fn shard_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    // As `transformers` does: an index beside a whole file is left over from something else.
    let single = folder.join(SINGLE);
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX);
    if index.exists() {
        return indexed_shards(folder, &index);
    }
    let expected = format!("{SINGLE}, or {INDEX} and the files it names");
    Err(FormatError::invalid(folder, "weights", expected, "neither").into())
}

/// The distinct files that the index names. They must lie in the folder itself.
fn indexed_shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let json = InputFile::open(index)?.read_all(MAX_INDEX_BYTES)?;
    let parsed: Index = serde_json::from_slice(&json)
        .map_err(|e| FormatError::invalid(index, "content", "a JSON object with weight_map", e))?;
    let mut names: Vec<&String> = parsed.weight_map.values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(FormatError::invalid(index, "weight_map", "at least one file", "none").into());
    }
    names
        .into_iter()
        .map(|name| {
            let mut parts = Path::new(name).components();
            match (parts.next(), parts.next()) {
                (Some(Component::Normal(_)), None) if name.len() <= MAX_FILE_NAME => {
                    Ok(folder.join(name))
                }
                _ => {
                    let found = format!("`{name}`");
                    Err(FormatError::invalid(
                        index,
                        "weight_map",
                        "names of files in this folder",
                        found,
                    )
                    .into())
                }
            }
        })
        .collect()
}

/// All tensors by name, with the number of their file.
fn merge(shards: &[SafetensorsFile]) -> Result<BTreeMap<&str, (usize, &TensorInfo)>> {
    let mut all = BTreeMap::new();
    for (file, shard) in shards.iter().enumerate() {
        for (name, info) in shard.tensors() {
            if let Some((other, _)) = all.insert(name.as_str(), (file, info)) {
                let found = format!("another in {}", shards[other].file().path().display());
                let field = format!("tensor `{name}`");
                return Err(FormatError::invalid(
                    shard.file().path(),
                    field,
                    "one tensor of that name",
                    found,
                )
                .into());
            }
        }
    }
    Ok(all)
}
