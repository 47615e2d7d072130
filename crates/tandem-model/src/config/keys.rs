//! Lookups of a config's keys that fail with the file, the key, what is expected and what is there.

use std::fmt::Display;
use std::path::Path;

use serde_json::{Map, Value};
use tandem_formats::FormatError;
use tandem_formats::gguf::Metadata;

use crate::error::{ModelError, Result};

/// No dimension of a model is larger than this; products of three of them then fit in 64 bits.
pub(super) const MAX_DIMENSION: u64 = 1 << 20;

/// No model has more layers than this, or more experts in a layer.
const MAX_COUNT: u64 = 4096;

/// Numbers of a model's shape, wherever they stand.
pub(super) trait Keys {
    /// What is wrong with a key.
    fn invalid(&self, key: &str, expected: impl Display, found: impl Display) -> ModelError;

    /// A whole number from 1 to `max`, where the key is there.
    fn number(&self, key: &str, max: u64) -> Result<Option<usize>>;

    /// A positive number.
    fn positive(&self, key: &str, default: f32) -> Result<f32>;

    /// A dimension, where the key is there.
    fn optional_dimension(&self, key: &str) -> Result<Option<usize>> {
        self.number(key, MAX_DIMENSION)
    }

    /// A dimension.
    fn dimension(&self, key: &str) -> Result<usize> {
        self.number(key, MAX_DIMENSION)?
            .ok_or_else(|| self.invalid(key, range(MAX_DIMENSION), "no such key"))
    }

    /// A number of layers or of experts.
    fn count(&self, key: &str) -> Result<usize> {
        self.number(key, MAX_COUNT)?
            .ok_or_else(|| self.invalid(key, range(MAX_COUNT), "no such key"))
    }
}

/// A JSON object whose lookups fail with the file, the key, what is expected and what is there.
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// The objects around this one, for messages: empty, or ends in a dot.
    prefix: String,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(path: &'a Path, json: &[u8]) -> Result<Self> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(map)) => Ok(Self { path, prefix: String::new(), map }),
            Ok(other) => {
                Err(FormatError::invalid(path, "content", "a JSON object", kind(&other)).into())
            }
            Err(e) => Err(FormatError::invalid(path, "content", "a JSON object", e).into()),
        }
    }

    /// An object within this one.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                path: self.path,
                prefix: format!("{}{key}.", self.prefix),
                map: map.clone(),
            })),
            other => Err(self.invalid(key, "an object", shown(other))),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn must_be(&self, key: &str, expected: &str) -> Result<()> {
        match self.get(key) {
            Some(Value::String(s)) if s == expected => Ok(()),
            other => Err(self.invalid(key, format!("\"{expected}\""), shown(other))),
        }
    }

    pub(super) fn must_be_or_absent(&self, key: &str, expected: &Value) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(v) if v == expected => Ok(()),
            other => Err(self.invalid(key, expected, shown(other))),
        }
    }

    pub(super) fn id(&self, key: &str, value: &Value) -> Result<u32> {
        value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| self.invalid(key, "a token id", shown(Some(value))))
    }

    pub(super) fn optional_id(&self, key: &str) -> Result<Option<u32>> {
        self.get(key).map(|v| self.id(key, v)).transpose()
    }

    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(|v| self.id(key, v)).collect(),
            Some(one) => Ok(vec![self.id(key, one)?]),
        }
    }
}

impl Keys for Fields<'_> {
    fn invalid(&self, field: &str, expected: impl Display, found: impl Display) -> ModelError {
        let field = format!("{}{field}", self.prefix);
        FormatError::invalid(self.path, field, expected, found).into()
    }

    fn number(&self, key: &str, max: u64) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=max).contains(&n) => Ok(usize::try_from(n).ok()),
            _ => Err(self.invalid(key, range(max), shown(Some(value)))),
        }
    }

    fn positive(&self, key: &str, default: f32) -> Result<f32> {
        let Some(value) = self.get(key) else { return Ok(default) };
        #[allow(clippy::cast_possible_truncation)] // the model computes in f32
        match value.as_f64().map(|x| x as f32) {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            _ => Err(self.invalid(key, "a positive number", shown(Some(value)))),
        }
    }
}

/// GGUF keys with the same kind of messages.
pub(super) struct GgufKeys<'a> {
    pub(super) path: &'a Path,
    pub(super) keys: &'a Metadata,
}

impl GgufKeys<'_> {
    pub(super) fn must_be(&self, key: &str, expected: &str) -> Result<()> {
        if self.keys.get(key).is_none() {
            return Err(self.invalid(key, format!("`{expected}`"), "no such key"));
        }
        self.must_be_or_absent(key, expected)
    }

    pub(super) fn must_be_or_absent(&self, key: &str, expected: &str) -> Result<()> {
        match self.keys.str(key)? {
            Some(found) if found != expected => {
                Err(self.invalid(key, format!("`{expected}`"), format!("`{found}`")))
            }
            _ => Ok(()),
        }
    }

    /// Converters write 0 where a model has no window.
    pub(super) fn window(&self, key: &str) -> Result<Option<usize>> {
        if self.keys.u64(key)? == Some(0) { Ok(None) } else { self.optional_dimension(key) }
    }
}

impl Keys for GgufKeys<'_> {
    fn invalid(&self, key: &str, expected: impl Display, found: impl Display) -> ModelError {
        FormatError::invalid(self.path, key, expected, found).into()
    }

    fn number(&self, key: &str, max: u64) -> Result<Option<usize>> {
        match self.keys.u64(key)? {
            None => Ok(None),
            Some(n) if (1..=max).contains(&n) => Ok(usize::try_from(n).ok()),
            Some(n) => Err(self.invalid(key, range(max), n)),
        }
    }

    fn positive(&self, key: &str, default: f32) -> Result<f32> {
        match self.keys.f32(key)? {
            None => Ok(default),
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            Some(x) => Err(self.invalid(key, "a positive number", x)),
        }
    }
}

/// What a number must be, for a message.
pub(super) fn range(max: u64) -> String {
    format!("a whole number from 1 to {max}")
}

/// A JSON value for a message: short, and never a page of someone's file.
fn shown(value: Option<&Value>) -> String {
    match value {
        None => "no such key".to_owned(),
        Some(v @ (Value::Array(_) | Value::Object(_))) => kind(v).to_owned(),
        Some(v) => {
            let text = v.to_string();
            if text.chars().count() > 40 {
                text.chars().take(40).chain("…".chars()).collect()
            } else {
                text
            }
        }
    }
}

/// What sort of JSON value it is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
