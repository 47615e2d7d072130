//! A tokenizer as the `tokenizer.ggml.*` keys of a GGUF file, so that other programs can read it too.

use std::collections::HashMap;

use serde_json::Value;
use tandem_formats::FormatError;

use super::from_gguf::TokenType;
use super::{GgmlVocab, Tokenizer, TokenizerConfig};
use crate::{ModelError, Result};

/// The score of ids without a token, as the usual converter writes it.
const UNUSED_SCORE: f32 = -10_000.0;

impl Tokenizer {
    /// The vocabulary in GGUF's terms, with `rows` ids (the model's `vocab_size`); ids without a token get a name and
    /// the type "unused". The names of BOS, EOS and padding tokens come from `config`.
    ///
    /// # Errors
    /// When a token's id does not fit `rows`.
    pub fn to_ggml(&self, rows: usize, config: &TokenizerConfig) -> Result<GgmlVocab> {
        self.check_fits(rows)?;
        let rows = u32::try_from(rows)
            .map_err(|_| FormatError::invalid(&self.path, "vocab_size", "at most 2^32", rows))?;
        let model = serde_json::to_value(self.inner.get_model())
            .map_err(|e| ModelError::tokenizer(&self.path, e))?;
        let merges = merges(&model);
        let byte_level = self.pieces.is_byte_level();
        let named = |name: &Option<String>| name.as_deref().and_then(|name| self.id(name));
        let unk = model["unk_token"].as_str().and_then(|token| self.id(token));
        let tokens: Vec<String> =
            (0..rows).map(|id| self.token(id).unwrap_or_else(|| format!("[PAD{id}]"))).collect();
        let types: Vec<TokenType> = (0..rows).map(|id| self.token_type(id, unk)).collect();
        Ok(GgmlVocab {
            model: if byte_level { "gpt2" } else { "llama" }.to_owned(),
            pre: self.pre_tokenizer_name(),
            scores: (!byte_level).then(|| scores(&tokens, &types, &merges)),
            token_types: Some(types.into_iter().map(|kind| kind as i32).collect()),
            merges: byte_level
                .then(|| merges.iter().map(|(left, right)| format!("{left} {right}")).collect()),
            tokens,
            bos: named(&config.bos_token),
            eos: named(&config.eos_token),
            unk,
            pad: named(&config.pad_token),
            add_bos: Some(self.adds_tokens()?),
            add_space_prefix: (!byte_level).then(|| self.pieces.drops_leading_space()),
            architecture: None,
            huggingface_json: Some(self.to_json()?),
        })
    }

    fn token_type(&self, id: u32, unk: Option<u32>) -> TokenType {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        match (self.token(id), added.get(&id)) {
            (None, _) => TokenType::Unused,
            _ if unk == Some(id) => TokenType::Unknown,
            (_, Some(token)) if token.special => TokenType::Control,
            (_, Some(_)) => TokenType::UserDefined,
            (Some(token), None) if self.pieces.is_fallback_byte(&token) => TokenType::Byte,
            _ => TokenType::Normal,
        }
    }

    /// GGUF's name for the way text is cut before BPE, where it is one that [`GgmlVocab`] is read with too.
    fn pre_tokenizer_name(&self) -> Option<String> {
        let pre = serde_json::to_value(self.inner.get_pre_tokenizer()).ok()?;
        let gpt2 = pre["type"] == "ByteLevel"
            && pre["use_regex"] == true
            && pre["add_prefix_space"] == false;
        if gpt2 {
            return Some("gpt-2".to_owned());
        }
        pre.is_null().then(|| "default".to_owned())
    }

    /// Whether the original adds tokens around a text, which for the models at hand can only be BOS.
    fn adds_tokens(&self) -> Result<bool> {
        let encoding =
            self.inner.encode_fast("", true).map_err(|e| ModelError::tokenizer(&self.path, e))?;
        Ok(!encoding.get_ids().is_empty())
    }
}

/// The merges of a BPE model's JSON, the preferred first.
fn merges(model: &Value) -> Vec<(&str, &str)> {
    let pairs = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    pairs.iter().filter_map(|pair| Some((pair[0].as_str()?, pair[1].as_str()?))).collect()
}

/// Scores that order merges as their ranks do: the earlier a piece can be merged, the higher it scores.
fn scores(tokens: &[String], types: &[TokenType], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |(token, kind): (&String, &TokenType)| match kind {
        TokenType::Unused => UNUSED_SCORE,
        // What no merge makes (single characters) comes last, as in SentencePiece's own vocabularies.
        TokenType::Normal => -(ranks.get(token).copied().unwrap_or(merges.len()) as f32),
        _ => 0.0,
    };
    tokens.iter().zip(types).map(score).collect()
}
