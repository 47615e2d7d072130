//! The ordered key-value pairs of a GGUF file, with getters that say what was wrong.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::value::{Array, Value};
use crate::text::Quoted;
use crate::{FormatError, Result};

/// Metadata in file order.
///
/// Typed getters give `Ok(None)` for a key that is absent and an error naming file, key, expected and found type
/// for a key of another type.
#[derive(Clone, Debug)]
pub struct Metadata {
    source: PathBuf,
    entries: IndexMap<String, Value>,
}

impl Default for Metadata {
    fn default() -> Self {
        Self::new()
    }
}

/// Equal when the same entries stand in the same order, wherever they came from.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries.iter().eq(other.entries.iter())
    }
}

impl Metadata {
    /// Empty metadata for a file to be written.
    pub fn new() -> Self {
        Self::of_file(Path::new("new GGUF metadata"))
    }

    /// Empty metadata whose getters name `path` in their errors.
    pub(super) fn of_file(path: &Path) -> Self {
        Self { source: path.to_owned(), entries: IndexMap::new() }
    }

    /// Sets a key, at the end if it is new; gives back the value it had.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        self.entries.insert(key.into(), value.into())
    }

    /// The value of a key, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// All entries in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A non-negative integer of any integer type, if it fits 32 bits.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer from 0 to 4294967295", |v| v.as_u64()?.try_into().ok())
    }

    /// A non-negative integer of any integer type.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// A 32-bit float.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "f32", |v| if let Value::F32(x) = v { Some(*x) } else { None })
    }

    /// A boolean.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "bool", |v| if let Value::Bool(x) = v { Some(*x) } else { None })
    }

    /// A string.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(
            key,
            "string",
            |v| if let Value::String(s) = v { Some(s.as_str()) } else { None },
        )
    }

    /// An array of strings.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "array of strings", |v| {
            if let Value::Array(Array::String(a)) = v { Some(a.as_slice()) } else { None }
        })
    }

    /// An array of 32-bit signed integers.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn i32s(&self, key: &str) -> Result<Option<&[i32]>> {
        self.typed(key, "array of i32", |v| {
            if let Value::Array(Array::I32(a)) = v { Some(a.as_slice()) } else { None }
        })
    }

    /// An array of 32-bit floats.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "array of f32", |v| {
            if let Value::Array(Array::F32(a)) = v { Some(a.as_slice()) } else { None }
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| {
            let field = format_args!("metadata {}", Quoted(key)).to_string();
            FormatError::invalid(&self.source, field, expected, value)
        })
    }
}
