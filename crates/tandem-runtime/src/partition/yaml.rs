//! YAML as a tree that knows its lines, so that whatever is wrong with a value can be said with its place.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and its place.
#[derive(Debug)]
pub(super) struct Node {
    /// From 1 on.
    pub(super) line: u64,
    pub(super) value: Value,
}

/// What YAML can say.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Line of the key.
    pub(super) line: u64,
    pub(super) node: Node,
}

/// What is no YAML, and where.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) line: u64,
    pub(super) message: String,
}

/// Reads one document. Keys given twice are refused.
pub(super) fn parse(text: &str) -> Result<Node, Malformed> {
    serde_saphyr::from_str::<Spanned<Value>>(text).map(Node::from).map_err(|error| {
        let line = error.location().map_or(1, |place| place.line());
        // The message ends with the place, which is said elsewhere.
        let message = error.without_snippet().to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        Malformed { line, message }
    })
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: spanned.referenced.line(), value: spanned.value }
    }
}

/// As an error message shows it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => write!(f, "'{value}'"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a section"),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Value>>()? {
            all.push(item.into());
        }
        Ok(Value::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = map.next_entry::<Spanned<String>, Spanned<Value>>()? {
            let line = key.referenced.line();
            entries.push(Entry { key: key.value, line, node: node.into() });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line() {
        let tree = parse("a: 1\n# remark\nb:\n  c: [1, 2]\n  d:\n  e: x\n").unwrap();
        let Value::Map(entries) = &tree.value else { panic!("{tree:?}") };
        assert_eq!((entries[0].line, entries[0].node.value.to_string()), (1, "1".to_owned()));
        assert_eq!(entries[1].line, 3);
        let Value::Map(inner) = &entries[1].node.value else { panic!("{tree:?}") };
        let shown: Vec<_> =
            inner.iter().map(|e| (e.line, e.key.as_str(), e.node.value.to_string())).collect();
        let expected = [(4, "c", "a list"), (5, "d", "nothing"), (6, "e", "'x'")];
        assert_eq!(shown, expected.map(|(line, key, value)| (line, key, value.to_owned())));
    }

    #[test]
    fn what_is_no_yaml_is_refused_with_its_line() {
        for (text, line, part) in [
            ("a: [1\nb: 2", 2, "':'"),
            ("a: 1\na: 2\n", 2, "duplicate mapping key: a"),
            ("a: 1\n---\nb: 2\n", 3, "multiple"),
            ("a: *gone", 1, "unknown anchor"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error:?}");
            assert!(error.message.contains(part), "{text}: {error:?}");
            assert!(!error.message.contains('\n'), "{text}: {error:?}");
        }
    }
}
