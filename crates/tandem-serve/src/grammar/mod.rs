//! Answers that keep to a grammar: token by token, only what may come next is chosen from.
//!
//! The work is `llguidance`'s. It knows tokens as bytes; special tokens, which are control and not text, it never allows.

mod tools;

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::Constraint;

use crate::backend::ModelInfo;
use crate::error::ApiError;
pub(crate) use tools::{CALL_BEGINS, CALL_ENDS, ToolGrammar};

/// What all grammars of a model share: its tokens as bytes. Made when the first grammar is asked for.
pub(crate) struct Grammars {
    tokens: Tokens,
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// A model's tokens.
#[derive(Clone)]
struct Tokens {
    tokenizer: Arc<Tokenizer>,
    /// Ids of tokens are below this.
    vocab_size: u32,
    stop_ids: Arc<[u32]>,
}

impl Grammars {
    pub(crate) fn new(model: &ModelInfo) -> Self {
        let tokens = Tokens {
            tokenizer: Arc::clone(&model.tokenizer),
            vocab_size: u32::try_from(model.vocab_size).unwrap_or(u32::MAX),
            stop_ids: model.stop_ids.clone().into(),
        };
        Self { tokens, factory: OnceLock::new() }
    }

    /// Any JSON object.
    pub(crate) fn json_object(&self) -> Result<Box<dyn Constraint>, ApiError> {
        self.json_schema(&json!({"type": "object"}))
    }

    /// JSON that is valid against a schema.
    ///
    /// # Errors
    /// Where the schema contradicts itself, is too large, or says something that is not understood.
    pub(crate) fn json_schema(&self, schema: &Value) -> Result<Box<dyn Constraint>, ApiError> {
        let grammar = TopLevelGrammar::from_json_schema(compact(schema));
        self.compile("response_format.json_schema.schema", grammar)
    }

    /// Calls of tools.
    ///
    /// # Errors
    /// As [`Self::json_schema`].
    pub(crate) fn tools(&self, tools: &ToolGrammar<'_>) -> Result<Box<dyn Constraint>, ApiError> {
        self.compile("tools", TopLevelGrammar::from_lark(tools.lark()))
    }

    fn compile(
        &self,
        param: &str,
        grammar: TopLevelGrammar,
    ) -> Result<Box<dyn Constraint>, ApiError> {
        let invalid = |message: String| {
            let line = message.lines().next().unwrap_or_default().to_owned();
            ApiError::invalid(param, format!("{param}: {line}"))
        };
        let factory = self.factory.get_or_init(|| factory(&self.tokens));
        let factory = factory.as_ref().map_err(|message| ApiError::server(message.clone()))?;
        let matcher = Matcher::new(factory.create_parser(grammar));
        if let Some(message) = matcher.get_error() {
            return Err(invalid(message));
        }
        let stop_ids = Arc::clone(&self.tokens.stop_ids);
        Ok(Box::new(Grammar { matcher, stop_ids, mask: SimpleVob::new() }))
    }
}

/// The schema, with the wish that nothing stands between the parts of what it describes: a model that is at a loss could
/// write spaces without end.
pub(super) fn compact(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(map) => map.clone(),
        Value::Bool(false) => return Value::Bool(false),
        _ => serde_json::Map::new(),
    };
    let options =
        json!({"whitespace_flexible": false, "item_separator": ",", "key_separator": ":"});
    schema.insert("x-guidance".to_owned(), options);
    Value::Object(schema)
}

fn factory(tokens: &Tokens) -> Result<ParserFactory, String> {
    let environment: TokEnv = Arc::new(Environment { trie: trie(tokens)?, tokens: tokens.clone() });
    let mut factory = ParserFactory::new_simple(&environment).map_err(|e| e.to_string())?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.verbose_errors = false;
    Ok(factory)
}

/// The tokens by their bytes. An id without a token has none, so that it is never allowed.
fn trie(tokens: &Tokens) -> Result<TokTrie, String> {
    let Some(&stop) = tokens.stop_ids.first() else {
        return Err("the model has no token that ends a text".to_owned());
    };
    let bytes = |id| {
        let mut bytes = tokens.tokenizer.token_bytes(id).unwrap_or_default();
        if tokens.tokenizer.is_special(id) || tokens.stop_ids.contains(&id) {
            bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        bytes
    };
    let words: Vec<Vec<u8>> = (0..tokens.vocab_size).map(bytes).collect();
    let trie = TokTrie::from(&TokRxInfo::new(tokens.vocab_size, stop), &words);
    Ok(trie.with_eos_tokens(&tokens.stop_ids))
}

/// The tokenizer as the library sees it.
struct Environment {
    trie: TokTrie,
    tokens: Tokens,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokens.tokenizer.encode(text).unwrap_or_default()
        })
    }

    fn tokenize_is_canonical(&self) -> bool {
        // A tokenizer may put a space before a text, which is not in its bytes.
        false
    }
}

/// How far one answer has come.
struct Grammar {
    matcher: Matcher,
    stop_ids: Arc<[u32]>,
    mask: SimpleVob,
}

impl Constraint for Grammar {
    fn mask(&mut self) -> Result<&[u32], String> {
        self.mask = self.matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
        // Whatever ends the text will do where one of these may.
        if self.stop_ids.iter().any(|&id| self.mask.is_allowed(id)) {
            self.stop_ids.iter().for_each(|&id| self.mask.allow_token(id));
        }
        Ok(self.mask.as_slice())
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        if self.stop_ids.contains(&id) {
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|e| e.to_string())
    }

    fn boxed(&self) -> Box<dyn Constraint> {
        Box::new(Self {
            matcher: self.matcher.deep_clone(),
            stop_ids: Arc::clone(&self.stop_ids),
            mask: SimpleVob::new(),
        })
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("stopped", &self.matcher.is_stopped()).finish()
    }
}
