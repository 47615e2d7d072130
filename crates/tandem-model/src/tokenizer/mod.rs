//! Text to token ids and back.
//!
//! The ids are those of the `tokenizers` library on the model's `tokenizer.json`: that file, not a
//! re-implementation, is what the model was trained with. What this module adds is the safe use of it. Files come
//! from strangers, so `check` looks at everything that the library trusts before the library sees it; a GGUF file
//! without a `tokenizer.json` inside has one rebuilt from its vocabulary ([`GgmlVocab`]); and text comes back
//! through [`Detokenizer`], token by token, never with half a character.

mod check;
mod config;
mod from_gguf;
mod to_gguf;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tandem_formats::FormatError;

use crate::detokenize::{Detokenizer, PieceDecoder, Special};
use crate::{ModelError, Result};

pub use config::TokenizerConfig;
pub use from_gguf::GgmlVocab;

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    pieces: PieceDecoder,
    special: HashSet<u32>,
    /// By id: asked for every id of every sampled token.
    has_token: Vec<bool>,
    vocab_size: usize,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads the text of a `tokenizer.json`; `path` is where it comes from, for messages.
    ///
    /// # Errors
    /// When the text is no such file, contradicts itself, or describes a kind of tokenizer other than BPE with one
    /// of the usual decoders.
    pub fn from_json_bytes(path: &Path, json: &[u8]) -> Result<Self> {
        let summary = check::summarize(path, json)?;
        let mut inner = contained(path, "loading", || tokenizers::Tokenizer::from_bytes(json))?;
        // A prompt is never cut or padded behind the caller's back, whatever the file's settings say.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| ModelError::tokenizer(path, e))?;
        for (token, id) in &summary.added {
            let found = inner.token_to_id(token);
            if found != Some(*id) {
                let expected = format!("id {}", found.map_or("none".into(), |f| f.to_string()));
                let field = format!("added token {token:?}");
                return Err(FormatError::invalid(path, field, expected, id).into());
            }
        }
        let pieces = PieceDecoder::new(path, &inner)?;
        let special = inner
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .iter()
            .filter_map(|(id, token)| token.special.then_some(*id))
            .collect();
        let ids = 0..u32::try_from(summary.vocab_size).unwrap_or(u32::MAX);
        let has_token = ids.map(|id| inner.id_to_token(id).is_some()).collect();
        let (vocab_size, path) = (summary.vocab_size, path.to_owned());
        Ok(Self { inner, pieces, special, has_token, vocab_size, path })
    }

    /// Builds the tokenizer of a GGUF file from the file's `tokenizer.*` keys.
    ///
    /// # Errors
    /// As [`Self::from_json_bytes`], and when the keys contradict each other or need a pre-tokenizer that only a
    /// `tokenizer.huggingface.json` could describe.
    pub fn from_ggml(path: &Path, vocab: &GgmlVocab) -> Result<Self> {
        match &vocab.huggingface_json {
            Some(json) => Self::from_json_bytes(path, json.as_bytes()),
            None => Self::from_json_bytes(path, &vocab.to_tokenizer_json(path)?),
        }
    }

    /// The ids of a text. Special tokens written in the text are recognised; nothing is added around it (no BOS).
    ///
    /// # Errors
    /// When the text has a character that the vocabulary cannot express and there is no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = contained(&self.path, "encoding", || self.inner.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids; the same as what a [`Detokenizer`] gives piece by piece. Ids without a token are passed over.
    pub fn decode(&self, ids: &[u32], special: Special) -> String {
        let mut detokenizer = Detokenizer::new(self, special);
        let mut text = String::new();
        for &id in ids {
            text.extend(detokenizer.push(id));
        }
        text.extend(detokenizer.finish());
        text
    }

    /// The token with that id, as the vocabulary writes it (`▁Hi`, `<0x0A>`), if there is one.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that a token stands for in the middle of a text: part of a character, perhaps. For a special token,
    /// those of its name.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.pieces.append(&self.token(id)?, false, &mut bytes);
        Some(bytes)
    }

    /// The id of a token, written as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the id has a token. Some models have logits for ids without one (Phi: 32011 to 32063), which must
    /// never be sampled.
    pub fn has_token(&self, id: u32) -> bool {
        self.has_token.get(id as usize).copied().unwrap_or(false)
    }

    /// Whether the id is a special token such as `<|end|>`: control, not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The highest id with a token, plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Makes sure that every id fits a model whose embedding has `rows` rows.
    ///
    /// # Errors
    /// When a token's id is beyond them.
    pub fn check_fits(&self, rows: usize) -> Result<()> {
        if self.vocab_size <= rows {
            return Ok(());
        }
        let expected = format!("a tokenizer that fits the model's vocabulary of {rows}");
        Err(FormatError::invalid(&self.path, "highest token id", expected, self.vocab_size - 1)
            .into())
    }

    /// The tokenizer as a `tokenizer.json`, for embedding in a GGUF file.
    ///
    /// # Errors
    /// Never for a tokenizer that has been loaded; the library's signature allows for it.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(false).map_err(|e| ModelError::tokenizer(&self.path, e))
    }

    /// What turns the vocabulary's spelling of a token into bytes of text.
    pub(crate) fn pieces(&self) -> &PieceDecoder {
        &self.pieces
    }
}

/// Runs a call into the tokenizer library; a panic there becomes an error.
///
/// The library indexes and unwraps in places where it takes a file's word. [`check`] refuses what is known to trip
/// it; this keeps an unknown case from taking a server down.
fn contained<T>(
    path: &Path,
    action: &str,
    call: impl FnOnce() -> tokenizers::Result<T>,
) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => {
            result.map_err(|e| ModelError::tokenizer(path, format!("tokenizer {action}: {e}")))
        }
        Err(_) => {
            Err(ModelError::tokenizer(path, format!("tokenizer {action}: the library panicked")))
        }
    }
}
