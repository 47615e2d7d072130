//! Which files of a repository are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::failure::Failure;
use super::id::is_path;

/// The list of shards of a model in several safetensors files.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 3] =
    ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];

/// What to take of a repository. Never anything that runs code when loaded (`*.bin`, `*.pt`), nor ONNX.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// A folder of these files.
    Folder(Vec<&'static str>),
    /// One GGUF file, which has everything in it.
    Gguf(String),
}

impl Plan {
    /// Chooses among the files of a repository; `wanted` is the GGUF file that the user named.
    pub(super) fn new(names: &[String], wanted: Option<&str>) -> Result<Self, String> {
        let has = |name: &str| names.iter().any(|n| n == name);
        let gguf: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|n| n.ends_with(".gguf") && is_path(n))
            .collect();
        if let Some(wanted) = wanted {
            return match gguf.contains(&wanted) {
                true => Ok(Self::Gguf(wanted.to_owned())),
                false => Err(format!("no file {wanted}; GGUF files there: {}", listed(&gguf))),
            };
        }
        // As transformers does: one file is preferred to shards.
        let Some(weights) = [SINGLE, INDEX].into_iter().find(|name| has(name)) else {
            return match gguf.as_slice() {
                [] => {
                    Err("no model.safetensors, model.safetensors.index.json or *.gguf there"
                        .to_owned())
                }
                [one] => Ok(Self::Gguf((*one).to_owned())),
                [first, ..] => Err(format!(
                    "several GGUF files; add one to the name, as in `:{first}`: {}",
                    listed(&gguf)
                )),
            };
        };
        if let Some(missing) = REQUIRED.into_iter().find(|name| !has(name)) {
            return Err(format!("no {missing} there"));
        }
        let optional = OPTIONAL.into_iter().filter(|name| has(name));
        Ok(Self::Folder(REQUIRED.into_iter().chain(optional).chain([weights]).collect()))
    }

    /// The files known so far; an index names more.
    pub(super) fn files(&self) -> Vec<&str> {
        match self {
            Self::Folder(files) => files.clone(),
            Self::Gguf(file) => vec![file],
        }
    }

    pub(super) fn has_index(&self) -> bool {
        self.files().contains(&INDEX)
    }

    /// What to open, given the folder that the files are in.
    pub(super) fn path_in(&self, folder: &Path) -> PathBuf {
        match self {
            Self::Folder(_) => folder.to_owned(),
            Self::Gguf(file) => folder.join(file),
        }
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The shards that an index names, each once.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>, Failure> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let unreadable = |e: &dyn std::fmt::Display| Failure::new(format!("{}: {e}", index.display()));
    let bytes = std::fs::read(index).map_err(|e| unreadable(&e))?;
    let parsed: Index = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    match shards.iter().find(|name| !is_path(name) || !name.ends_with(".safetensors")) {
        // A name such as ../x would be written and read outside of the model's folder.
        Some(bad) => {
            let problem = format!(
                "weight_map: expected names of safetensors files in the folder, found {bad:?}"
            );
            Err(unreadable(&problem))
        }
        None => Ok(shards),
    }
}
