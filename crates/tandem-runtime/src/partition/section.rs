//! A section of the config with its keys: read by name, all others refused.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::yaml::{self, Entry, Node, Value};

/// Why a partition config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// The file.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Not YAML.
    #[error("{path}:{line}: not YAML: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        line: u64,
        /// What the parser says.
        message: String,
    },
    /// A key with a value that it cannot have.
    #[error("{path}:{line}: {key}: expected {expected}, found {found}")]
    Value {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        line: u64,
        /// The key with the sections it is in.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// No such key.
    #[error("{path}:{line}: {key}: there is no such key; the nearest is `{nearest}`")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        line: u64,
        /// The key with the sections it is in.
        key: String,
        /// A key that is there.
        nearest: String,
    },
}

/// Shorthand of this module.
pub(super) type Result<T> = std::result::Result<T, PartitionError>;

/// Keys and values of one level.
#[derive(Clone, Debug)]
pub(super) struct Section<'a> {
    path: &'a Path,
    /// Names of the sections above and its own, each with a dot after it.
    prefix: String,
    /// Where it begins.
    line: u64,
    entries: &'a [Entry],
}

impl<'a> Section<'a> {
    /// The whole file. An empty one has no keys.
    pub(super) fn root(path: &'a Path, tree: &'a Node) -> Result<Self> {
        Self::of(path, String::new(), "the file", tree)
    }

    fn of(path: &'a Path, prefix: String, name: &str, node: &'a Node) -> Result<Self> {
        let entries = match &node.value {
            Value::Map(entries) => &entries[..],
            Value::Null => &[],
            other => {
                return Err(PartitionError::Value {
                    path: path.to_owned(),
                    line: node.line,
                    key: name.to_owned(),
                    expected: "a section with keys".to_owned(),
                    found: other.to_string(),
                });
            }
        };
        Ok(Self { path, prefix, line: node.line, entries })
    }

    /// All keys with their values.
    pub(super) fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &str) -> Option<&'a Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// A section within this one; an empty one where it is left out.
    pub(super) fn section(&self, key: &str) -> Result<Self> {
        match self.get(key) {
            Some(entry) => self.section_at(entry),
            None => Ok(Self {
                line: self.line,
                prefix: self.prefix.clone(),
                entries: &[],
                path: self.path,
            }),
        }
    }

    /// The section that an entry is.
    pub(super) fn section_at(&self, entry: &'a Entry) -> Result<Self> {
        let name = self.name(&entry.key);
        Self::of(self.path, format!("{name}."), &name, &entry.node)
    }

    /// A number.
    pub(super) fn number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(entry) = self.get(key) else { return Ok(None) };
        match entry.node.value {
            Value::Number(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(self.invalid(entry, expected))
            }
        }
    }

    /// A whole number.
    pub(super) fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(entry) = self.get(key) else { return Ok(None) };
        match entry.node.value {
            Value::Number(n) if n.fract() == 0.0 && n >= 0.0 && range.contains(&(n as usize)) => {
                Ok(Some(n as usize))
            }
            _ => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.invalid(entry, expected))
            }
        }
    }

    /// A number that the model has fixed already.
    pub(super) fn must_be(&self, key: &str, of_the_model: usize) -> Result<()> {
        match self.get(key) {
            Some(entry) if entry.node.value.as_count() != Some(of_the_model) => {
                Err(self.invalid(entry, format!("{of_the_model}, as the model has")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses every key that is not `known`, with the nearest that is.
    pub(super) fn only(&self, known: &[&str]) -> Result<()> {
        for entry in self.entries {
            if !known.contains(&entry.key.as_str()) {
                let (path, key) = (self.path.to_owned(), self.name(&entry.key));
                let nearest = nearest(known, &entry.key).to_owned();
                return Err(PartitionError::Unknown { path, line: entry.line, key, nearest });
            }
        }
        Ok(())
    }

    /// Yes or no.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(entry) = self.get(key) else { return Ok(None) };
        match entry.node.value {
            Value::Bool(flag) => Ok(Some(flag)),
            _ => Err(self.invalid(entry, "true or false")),
        }
    }

    /// Some text.
    pub(super) fn text(&self, key: &str, expected: &str) -> Result<Option<&'a str>> {
        let Some(entry) = self.get(key) else { return Ok(None) };
        match &entry.node.value {
            Value::Text(text) if !text.is_empty() => Ok(Some(text)),
            _ => Err(self.invalid(entry, expected)),
        }
    }

    /// What one of some names stands for.
    pub(super) fn one_of<T: Copy>(&self, key: &str, names: &[(&str, T)]) -> Result<Option<T>> {
        let Some(entry) = self.get(key) else { return Ok(None) };
        let found = named(&entry.node.value, names);
        found.map(Some).ok_or_else(|| self.invalid(entry, listed(names)))
    }

    /// What each of a list's names stands for, in its order. None may be there twice.
    pub(super) fn some_of<T: Copy + PartialEq>(
        &self,
        key: &str,
        names: &[(&str, T)],
    ) -> Result<Option<Vec<T>>> {
        let Some(entry) = self.get(key) else { return Ok(None) };
        let mut all = Vec::new();
        for item in self.items(entry)? {
            let Some(found) = named(&item.value, names) else {
                return Err(self.invalid_item(entry, item, listed(names)));
            };
            if all.contains(&found) {
                return Err(self.invalid_item(entry, item, "every name once"));
            }
            all.push(found);
        }
        Ok(Some(all))
    }

    /// The items of a list.
    pub(super) fn items(&self, entry: &'a Entry) -> Result<&'a [Node]> {
        match &entry.node.value {
            Value::List(items) => Ok(items),
            _ => Err(self.invalid(entry, "a list")),
        }
    }

    /// The sections that a list consists of.
    pub(super) fn sections(&self, key: &str) -> Result<Vec<Self>> {
        let Some(entry) = self.get(key) else { return Ok(Vec::new()) };
        let section = |(n, item): (usize, &'a Node)| {
            let name = format!("{}[{n}]", self.name(key));
            Self::of(self.path, format!("{name}."), &name, item)
        };
        self.items(entry)?.iter().enumerate().map(section).collect()
    }

    /// The error of a value that cannot be.
    pub(super) fn invalid(&self, entry: &Entry, expected: impl Into<String>) -> PartitionError {
        PartitionError::Value {
            path: self.path.to_owned(),
            line: entry.line,
            key: self.name(&entry.key),
            expected: expected.into(),
            found: entry.node.value.to_string(),
        }
    }

    /// The error of an item that a list cannot have.
    pub(super) fn invalid_item(
        &self,
        list: &Entry,
        item: &Node,
        expected: impl Into<String>,
    ) -> PartitionError {
        PartitionError::Value {
            path: self.path.to_owned(),
            line: item.line,
            key: self.name(&list.key),
            expected: expected.into(),
            found: item.value.to_string(),
        }
    }

    /// The error of a section that lacks something, or is not possible beside others.
    pub(super) fn lacking(&self, expected: &str) -> PartitionError {
        let keys: Vec<_> = self.entries.iter().map(|entry| entry.key.as_str()).collect();
        PartitionError::Value {
            path: self.path.to_owned(),
            line: self.line,
            key: self.prefix.trim_end_matches('.').to_owned(),
            expected: expected.to_owned(),
            found: if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") },
        }
    }

    /// The error of a key that has no place here, whatever its value.
    pub(super) fn misplaced(&self, entry: &Entry, expected: impl Into<String>) -> PartitionError {
        PartitionError::Value {
            path: self.path.to_owned(),
            line: entry.line,
            key: self.name(&entry.key),
            expected: expected.into(),
            found: format!("'{}'", entry.key),
        }
    }

    fn name(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// The name that is most like one that is not there.
fn nearest<'n>(known: &[&'n str], unknown: &str) -> &'n str {
    let distance = |name: &&&str| strsim::damerau_levenshtein(name, unknown);
    known.iter().min_by_key(distance).copied().unwrap_or_default()
}

fn named<T: Copy>(value: &Value, names: &[(&str, T)]) -> Option<T> {
    let Value::Text(text) = value else { return None };
    names.iter().find(|(name, _)| name == text).map(|&(_, meaning)| meaning)
}

/// Names, as an error lists them.
fn listed<T>(names: &[(&str, T)]) -> String {
    let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
    match &names[..] {
        [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        _ => names.join(""),
    }
}

impl Value {
    pub(super) fn as_count(&self) -> Option<usize> {
        match self {
            Self::Number(n) if n.fract() == 0.0 && *n >= 0.0 => Some(*n as usize),
            _ => None,
        }
    }
}

/// Reads the tree of a file.
pub(super) fn tree(path: &Path, text: &str) -> Result<Node> {
    yaml::parse(text).map_err(|yaml::Malformed { line, message }| PartitionError::Malformed {
        path: path.to_owned(),
        line,
        message,
    })
}
