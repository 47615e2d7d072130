//! Answers that keep to a form (a JSON schema, calls of tools): token by token, only what may come next is chosen from.
//! Whoever serves texts makes of a client's [`AnswerForm`] the [`Constraint`] that the engine asks.
//!
//! The work is `llguidance`'s. It knows tokens as bytes; special tokens, which are control and not text, it never allows.
#![forbid(unsafe_code)]

mod tools;

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::{AnswerForm, Constraint, ToolCalls};

pub use tools::{CALL_BEGINS, CALL_ENDS};

/// Tools that one answer may call, at most.
pub const MAX_TOOLS: usize = 128;

/// Why there is no grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The form contradicts itself, is too large, or says something that is not understood.
    #[error("{0}")]
    Form(String),
    /// Nothing can be constrained with this model.
    #[error("{0}")]
    Model(String),
}

/// What all grammars of a model share: its tokens as bytes. Made when the first grammar is asked for.
pub struct Grammars {
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
    /// Of a model with `vocab_size` rows of logits, whose texts end with `stop_ids`.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, stop_ids: &[u32]) -> Self {
        let vocab_size = u32::try_from(vocab_size).unwrap_or(u32::MAX);
        let tokens = Tokens { tokenizer, vocab_size, stop_ids: stop_ids.into() };
        Self { tokens, factory: OnceLock::new() }
    }

    /// What says token by token what may come in an answer of that form.
    ///
    /// # Errors
    /// Where the form contradicts itself, is too large, or says something that is not understood; and where the model has
    /// no token that ends a text.
    pub fn constraint(&self, form: AnswerForm) -> Result<Box<dyn Constraint>, GrammarError> {
        let grammar = match &form {
            AnswerForm::JsonSchema(schema) => {
                check_schema(schema)?;
                TopLevelGrammar::from_json_schema(compact(schema))
            }
            AnswerForm::Tools(calls) => {
                check_tools(calls)?;
                TopLevelGrammar::from_lark(tools::lark(calls))
            }
        };
        let factory = self.factory.get_or_init(|| factory(&self.tokens));
        let factory = factory.as_ref().map_err(|message| GrammarError::Model(message.clone()))?;
        let matcher = Matcher::new(factory.create_parser(grammar));
        if let Some(message) = matcher.get_error() {
            let line = message.lines().next().unwrap_or_default();
            return Err(GrammarError::Form(line.to_owned()));
        }
        let stop_ids = Arc::clone(&self.tokens.stop_ids);
        Ok(Box::new(Grammar { matcher, stop_ids, mask: SimpleVob::new(), form: Arc::new(form) }))
    }
}

/// Whether some JSON can be a schema: an object or a Boolean is, nothing else.
pub fn is_schema(value: &Value) -> bool {
    matches!(value, Value::Object(_) | Value::Bool(_))
}

fn check_schema(schema: &Value) -> Result<(), GrammarError> {
    if is_schema(schema) {
        return Ok(());
    }
    Err(GrammarError::Form("expected a JSON schema, an object or a Boolean".to_owned()))
}

fn check_tools(calls: &ToolCalls) -> Result<(), GrammarError> {
    let found = calls.tools.len();
    if !(1..=MAX_TOOLS).contains(&found) {
        let message = format!("tools: expected 1 to {MAX_TOOLS}, found {found}");
        return Err(GrammarError::Form(message));
    }
    let mut schemas = calls.tools.iter().filter_map(|tool| tool.parameters.as_ref());
    schemas.try_for_each(check_schema)
}

/// The schema, with the wish that nothing stands between the parts of what it describes: a model that is at a loss could
/// write spaces without end.
fn compact(schema: &Value) -> Value {
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
    form: Arc<AnswerForm>,
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
            form: Arc::clone(&self.form),
        })
    }

    fn form(&self) -> Option<&AnswerForm> {
        Some(&self.form)
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("stopped", &self.matcher.is_stopped()).finish()
    }
}
