//! How users name models of the hub.

use std::str::FromStr;

use hf_hub::{Repo, RepoType};

/// A model's name on the hub: `org/name`, `org/name@revision`, `org/name:file.gguf` or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    name: String,
    revision: String,
    file: Option<String>,
}

impl HubModel {
    /// `org/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit; "main" unless said otherwise.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The GGUF file that was asked for.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// The same model at another revision.
    ///
    /// # Errors
    /// When the revision could not be one.
    pub fn at(self, revision: &str) -> Result<Self, String> {
        if !is_path(revision) {
            return Err(format!("revision: expected a branch, tag or commit, found {revision:?}"));
        }
        Ok(Self { revision: revision.to_owned(), ..self })
    }

    pub(super) fn repo(&self) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone())
    }
}

impl FromStr for HubModel {
    type Err = String;

    /// Parses and checks; all parts become parts of URLs and of paths in the cache.
    fn from_str(id: &str) -> Result<Self, String> {
        let (rest, file) = match id.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (id, None),
        };
        let (name, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|part| is_name(part)) {
            return Err(format!("model: expected org/name, found {name:?}"));
        }
        if let Some(file) = file.filter(|file| !is_path(file) || !file.ends_with(".gguf")) {
            return Err(format!("file: expected the name of a GGUF file, found {file:?}"));
        }
        Self { name: name.to_owned(), revision: String::new(), file: file.map(str::to_owned) }
            .at(revision)
    }
}

/// What the hub allows as the name of an organisation or repository.
fn is_name(part: &str) -> bool {
    let is_edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = part.as_bytes();
    bytes.len() <= 96
        && is_edge(bytes.first())
        && is_edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        // The cache writes "--" for the slash.
        && !part.contains("--")
        && !part.contains("..")
}

/// Whether a text is a relative path that stays in its folder and needs no escaping in a URL.
pub(super) fn is_path(text: &str) -> bool {
    text.split('/').all(|part| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+=".contains(&b))
    })
}
