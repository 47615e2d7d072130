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
    /// A key that later versions will know.
    #[error("{path}:{line}: {key}: not supported by this version yet: remove it")]
    NotYet {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        line: u64,
        /// The key with the sections it is in.
        key: String,
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
        Ok(Self { path, prefix, entries })
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
            None => Ok(Self { path: self.path, prefix: self.prefix.clone(), entries: &[] }),
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

    /// Refuses every key that is not `known`: those of `later` as what is still to come, others with the nearest.
    pub(super) fn only(&self, known: &[&str], later: &[&str]) -> Result<()> {
        for entry in self.entries {
            let (path, key) = (self.path.to_owned(), self.name(&entry.key));
            if later.contains(&entry.key.as_str()) {
                return Err(PartitionError::NotYet { path, line: entry.line, key });
            }
            if !known.contains(&entry.key.as_str()) {
                let all = || known.iter().chain(later);
                let distance = |name: &&&str| strsim::damerau_levenshtein(name, &entry.key);
                let nearest = all().min_by_key(distance).map_or("", |name| name).to_owned();
                return Err(PartitionError::Unknown { path, line: entry.line, key, nearest });
            }
        }
        Ok(())
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

impl Value {
    fn as_count(&self) -> Option<usize> {
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
