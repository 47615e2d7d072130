//! What must hold of a `tokenizer.json` before the tokenizer library may see it.
//!
//! The library trusts its input in places: a merge whose result is longer than every token makes it index out of
//! bounds, and an added token whose id is not the next free one silently gets another id. So the parts in question
//! are parsed here first, in their plainest form.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use tandem_formats::FormatError;

use crate::Result;

/// What the loader needs to know of the file.
pub(super) struct Summary {
    /// The highest id, plus one.
    pub(super) vocab_size: usize,
    /// The added tokens as the file states them.
    pub(super) added: Vec<(String, u32)>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with a model")]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(rename = "type", default = "bpe", borrow)]
    kind: Cow<'a, str>,
    // Without these two the model is of another kind, which is worth a better message than a missing field.
    #[serde(default, borrow)]
    vocab: Option<Vocab<'a>>,
    #[serde(default)]
    merges: Vec<Merge>,
    continuing_subword_prefix: Option<String>,
}

/// Other kinds of model have lists here.
#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab<'a> {
    #[serde(borrow)]
    Ids(HashMap<Cow<'a, str>, u32>),
    Other(serde::de::IgnoredAny),
}

/// Newer files have pairs, older ones `"left right"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Spaced(String),
}

impl Merge {
    /// Length in bytes of the merged token.
    fn len(&self) -> usize {
        match self {
            Self::Pair(left, right) => left.len().saturating_add(right.len()),
            Self::Spaced(text) => text.len().saturating_sub(1),
        }
    }
}

fn bpe() -> Cow<'static, str> {
    "BPE".into()
}

/// Parses and checks; see the module's text.
pub(super) fn summarize(path: &Path, json: &[u8]) -> Result<Summary> {
    let file: File<'_> = serde_json::from_slice(json)
        .map_err(|e| FormatError::invalid(path, "content", "a tokenizer in JSON", e))?;
    let invalid = |field: &str, expected: &str, found: String| {
        Err(FormatError::invalid(path, field, expected, found).into())
    };
    if file.model.kind != "BPE" {
        return invalid("model.type", "BPE", file.model.kind.into_owned());
    }
    if let Some(prefix) = file.model.continuing_subword_prefix.filter(|p| !p.is_empty()) {
        return invalid("model.continuing_subword_prefix", "none", format!("{prefix:?}"));
    }
    let Some(Vocab::Ids(vocab)) = file.model.vocab else {
        return invalid("model.vocab", "a map from token to id", "something else".into());
    };
    let longest = vocab.keys().map(|token| token.len()).max().unwrap_or(0);
    if let Some(merge) = file.model.merges.iter().position(|m| m.len() > longest) {
        return invalid(
            "model.merges",
            "merges whose result is a token",
            format!("entry {merge} longer than any token"),
        );
    }
    let ids = vocab.values().copied().chain(file.added_tokens.iter().map(|t| t.id));
    let Some(highest) = ids.max() else {
        return invalid("model.vocab", "at least one token", "none".into());
    };
    let vocab_size = usize::try_from(highest).unwrap_or(usize::MAX).saturating_add(1);
    let added = file.added_tokens.into_iter().map(|t| (t.content, t.id)).collect();
    Ok(Summary { vocab_size, added })
}
