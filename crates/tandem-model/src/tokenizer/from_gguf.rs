//! A `tokenizer.json` out of the vocabulary of a GGUF file.
//!
//! GGUF has its own account of a tokenizer, from which not everything of the original can be told: how text is cut
//! before BPE (`gpt2` files only name it), which tokens strip white space. Files that Tandem writes therefore carry
//! the original under `tokenizer.huggingface.json`. For others the original is rebuilt here, as far as it is certain.

use std::collections::HashMap;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tandem_formats::FormatError;

use crate::Result;

/// What a GGUF file says about its tokenizer, key by key (`tokenizer.ggml.*` unless said otherwise).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgmlVocab {
    /// `model`: `llama` (BPE as SentencePiece does it) or `gpt2` (BPE over bytes).
    pub model: String,
    /// `pre`: how a `gpt2` tokenizer cuts text before BPE.
    pub pre: Option<String>,
    /// `tokens`, in the order of their ids.
    pub tokens: Vec<String>,
    /// `scores`, one for each token: which merges a `llama` tokenizer prefers.
    pub scores: Option<Vec<f32>>,
    /// `token_type`, one for each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `merges` of a `gpt2` tokenizer, each `"left right"`, the preferred first.
    pub merges: Option<Vec<String>>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`: whether a text is to start with the BOS token. For other programs; `encode` adds none.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`: whether a `llama` tokenizer puts a space before a text. It does where the key is missing.
    pub add_space_prefix: Option<bool>,
    /// `general.architecture`: the Phi models have a rule of their own for special tokens.
    pub architecture: Option<String>,
    /// `tokenizer.huggingface.json`: the original, which settles everything.
    pub huggingface_json: Option<String>,
}

/// Kinds of token, with their numbers in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenType {
    fn from_number(number: i32) -> Option<Self> {
        [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte]
            .into_iter()
            .find(|kind| *kind as i32 == number)
    }
}

/// The mark that SentencePiece writes for a space.
const SPACE_MARK: &str = "\u{2581}";
/// Special tokens of Phi models that do not strip the white space to their right; all others do.
const PHI_PLAIN_TOKENS: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
/// Longer pieces are refused: the search for merges takes time in the square of a piece's length.
const MAX_PIECE: usize = 512;

impl GgmlVocab {
    /// The text of the `tokenizer.json` that this vocabulary was made from, rebuilt.
    pub(super) fn to_tokenizer_json(&self, path: &Path) -> Result<Vec<u8>> {
        let entries = self.entries(path)?;
        let file = match self.model.as_str() {
            "llama" => self.sentencepiece(path, entries)?,
            "gpt2" => self.byte_level(path, entries)?,
            other => return Err(invalid(path, "model", "llama or gpt2", format!("{other:?}"))),
        };
        Ok(serde_json::to_vec(&file).expect("plain data serializes"))
    }

    /// The tokens that are in use, checked: kinds known, texts distinct, lists of equal length.
    fn entries(&self, path: &Path) -> Result<Vec<Entry<'_>>> {
        let count = self.tokens.len();
        let lists = [
            ("token_type", self.token_types.as_ref().map(Vec::len)),
            ("scores", self.scores.as_ref().map(Vec::len)),
        ];
        for (key, len) in lists {
            if len.is_some_and(|len| len != count) {
                return Err(invalid(
                    path,
                    key,
                    format!("{count} entries, as tokens"),
                    len.unwrap_or(0),
                ));
            }
        }
        let mut seen = HashMap::with_capacity(count);
        let mut entries = Vec::with_capacity(count);
        for (id, text) in (0u32..).zip(&self.tokens) {
            let kind = self.kind(path, id)?;
            if kind == TokenType::Unused || text.is_empty() {
                continue;
            }
            if let Some(other) = seen.insert(text.as_str(), id) {
                let found = format!("{text:?}, which token {other} is too");
                return Err(invalid(path, &format!("tokens[{id}]"), "a token of its own", found));
            }
            entries.push(Entry { id, text, kind });
        }
        Ok(entries)
    }

    fn kind(&self, path: &Path, id: u32) -> Result<TokenType> {
        let Some(types) = &self.token_types else {
            let named = [self.bos, self.eos, self.unk, self.pad].contains(&Some(id));
            return Ok(if named { TokenType::Control } else { TokenType::Normal });
        };
        let number = types[id as usize];
        TokenType::from_number(number).ok_or_else(|| {
            invalid(path, &format!("token_type[{id}]"), "a number from 1 to 6", number)
        })
    }

    fn sentencepiece<'a>(&self, path: &Path, entries: Vec<Entry<'a>>) -> Result<TokenizerJson<'a>> {
        let Some(scores) = &self.scores else {
            return Err(invalid(
                path,
                "scores",
                "one for each token of a llama vocabulary",
                "none",
            ));
        };
        let merges = merges_by_score(path, &entries, scores)?;
        let to_mark = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK});
        let mut normalizers = vec![to_mark];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_space_prefix != Some(false) {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE_MARK}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let is_unknown = |e: &&Entry<'_>| Some(e.id) == self.unk || e.kind == TokenType::Unknown;
        Ok(TokenizerJson {
            added_tokens: self.added(&entries),
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            pre_tokenizer: Value::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            model: ModelJson {
                kind: "BPE",
                unk_token: entries.iter().find(is_unknown).map(|e| e.text),
                fuse_unk: true,
                byte_fallback: true,
                merges: Merges::Pairs(merges),
                vocab: entries,
            },
        })
    }

    fn byte_level<'a>(&'a self, path: &Path, entries: Vec<Entry<'a>>) -> Result<TokenizerJson<'a>> {
        if let Some(pre) = self.pre.as_deref().filter(|pre| !["default", "gpt-2"].contains(pre)) {
            let expected = "default or gpt-2 (others need the key tokenizer.huggingface.json)";
            return Err(invalid(path, "pre", expected, format!("{pre:?}")));
        }
        let Some(merges) = &self.merges else {
            return Err(invalid(path, "merges", "the merges of a gpt2 vocabulary", "none"));
        };
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        Ok(TokenizerJson {
            added_tokens: self.added(&entries),
            normalizer: Value::Null,
            pre_tokenizer: byte_level.clone(),
            decoder: byte_level,
            model: ModelJson {
                kind: "BPE",
                unk_token: None,
                fuse_unk: false,
                byte_fallback: false,
                merges: Merges::Spaced(merges),
                vocab: entries,
            },
        })
    }

    /// The tokens that are found in a text as they stand, before anything else.
    fn added<'a>(&self, entries: &[Entry<'a>]) -> Vec<AddedJson<'a>> {
        let phi = matches!(self.architecture.as_deref(), Some("phimoe" | "phi3"));
        let is_added = |e: &&Entry<'_>| !matches!(e.kind, TokenType::Normal | TokenType::Byte);
        let added = |e: &Entry<'a>| AddedJson {
            id: e.id,
            content: e.text,
            single_word: false,
            lstrip: false,
            rstrip: phi && !PHI_PLAIN_TOKENS.contains(&e.text),
            normalized: false,
            special: e.kind != TokenType::UserDefined,
        };
        entries.iter().filter(is_added).map(added).collect()
    }
}

/// The merges that make SentencePiece's BPE out of scores: every way to split a piece into two others, the best
/// score of the whole first; ties go by ids. So do the converters of `transformers`.
fn merges_by_score<'a>(
    path: &Path,
    entries: &[Entry<'a>],
    scores: &[f32],
) -> Result<Vec<(&'a str, &'a str)>> {
    let normal = || entries.iter().filter(|e| e.kind == TokenType::Normal);
    let ids: HashMap<&str, u32> = normal().map(|e| (e.text, e.id)).collect();
    let mut found = Vec::new();
    for entry in normal() {
        if entry.text.len() > MAX_PIECE {
            let field = format!("tokens[{}]", entry.id);
            return Err(invalid(
                path,
                &field,
                format!("at most {MAX_PIECE} bytes"),
                entry.text.len(),
            ));
        }
        for (at, _) in entry.text.char_indices().skip(1) {
            let (left, right) = entry.text.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                found.push((scores[entry.id as usize], entry.id, left_id, right_id, (left, right)));
            }
        }
    }
    found.sort_unstable_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3)))
    });
    Ok(found.into_iter().map(|(.., pair)| pair).collect())
}

fn invalid(
    path: &Path,
    key: &str,
    expected: impl ToString,
    found: impl ToString,
) -> crate::ModelError {
    let field = format!("tokenizer.ggml.{key}");
    FormatError::invalid(path, field, expected.to_string(), found.to_string()).into()
}

/// A token in use.
struct Entry<'a> {
    id: u32,
    text: &'a str,
    kind: TokenType,
}

#[derive(Serialize)]
struct TokenizerJson<'a> {
    added_tokens: Vec<AddedJson<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: ModelJson<'a>,
}

#[derive(Serialize)]
struct AddedJson<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct ModelJson<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    unk_token: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    merges: Merges<'a>,
    #[serde(serialize_with = "as_map")]
    vocab: Vec<Entry<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Merges<'a> {
    Pairs(Vec<(&'a str, &'a str)>),
    Spaced(&'a [String]),
}

fn as_map<S: Serializer>(
    entries: &[Entry<'_>],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|e| (e.text, e.id)))
}
