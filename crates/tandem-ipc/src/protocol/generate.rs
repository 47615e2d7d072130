//! `generate`: a text.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tandem_grammar::{GrammarError, Grammars};
use tandem_model::chat::{ChatTemplate, Message};
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::{AnswerForm, Constraint, MAX_TOP_LOGPROBS, Request};

use super::{Fault, SamplingFields};

/// The most stop strings, and the most stop ids.
const MAX_STOPS: usize = 64;
/// The longest stop string, in bytes.
const MAX_STOP_BYTES: usize = 1024;

/// What is to be written.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// A text that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The same as ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<u32>>,
    /// A conversation, whose next message is to be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// The beginning of the answer, which another has written: it is not told again, and does not count among
    /// `max_tokens`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written_ids: Vec<u32>,
    /// Whether the answer goes on where the prompt's text ends, so that a space between the two belongs to it. By itself
    /// so for a `prompt`, and not for `ids` and `messages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues_prompt: Option<bool>,
    /// Tokens to write at most; without it until the text ends or the context is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    #[serde(default)]
    pub sampling: SamplingFields,
    /// Strings that end the text; they are not part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopStrings>,
    /// Ids that end the text, in place of the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_ids: Option<Vec<u32>>,
    /// Log probabilities of the chosen tokens, and of so many of the most likely ones with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<usize>,
    /// The form that the answer is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<AnswerForm>,
    /// Whether the text is told as it comes. Sockets that take one answer only (REQ) get it whole.
    #[serde(default)]
    pub stream: bool,
}

/// What turns a prompt into ids, and ends texts.
pub struct TextSide {
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, where it has one.
    pub template: Option<Arc<ChatTemplate>>,
    /// Rows of logits: ids are below this.
    pub vocab_size: usize,
    /// Ids that end its texts.
    pub stop_ids: Vec<u32>,
    grammars: Grammars,
}

impl TextSide {
    /// Of a model with `vocab_size` rows of logits, whose texts end with `stop_ids`.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        template: Option<Arc<ChatTemplate>>,
        vocab_size: usize,
        stop_ids: Vec<u32>,
    ) -> Self {
        let grammars = Grammars::new(Arc::clone(&tokenizer), vocab_size, &stop_ids);
        Self { tokenizer, template, vocab_size, stop_ids, grammars }
    }
}

/// One string or several.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
pub enum StopStrings {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Generate {
    /// The prompt's ids, and what is to be made of them by a model.
    ///
    /// # Errors
    /// Where there is no prompt or more than one, or something is out of range.
    pub fn prepare(&self, side: &TextSide) -> Result<(Vec<u32>, Request), Fault> {
        let sampling = self.sampling.params();
        sampling.validate().map_err(|error| Fault::request(format!("sampling: {error}")))?;
        self.check_biases(side.vocab_size)?;
        let stop_strings = self.stop_strings()?;
        let stop_ids = match &self.stop_ids {
            Some(ids) if ids.len() > MAX_STOPS => return Err(too_many("stop_ids", ids.len())),
            Some(ids) => ids.clone(),
            None => side.stop_ids.clone(),
        };
        let request = Request {
            max_tokens: self.max_tokens,
            stop_strings,
            continues_prompt: self.continues_prompt.unwrap_or(self.prompt.is_some()),
            logprobs: self.logprobs()?,
            constraint: self.constraint(side)?,
            ..Request::new(sampling, stop_ids)
        };
        Ok((self.prompt_ids(side)?, request))
    }

    fn prompt_ids(&self, side: &TextSide) -> Result<Vec<u32>, Fault> {
        let encode =
            |words: &str| side.tokenizer.encode(words).map_err(|e| Fault::request(e.to_string()));
        match (&self.prompt, &self.ids, &self.messages) {
            (Some(prompt), None, None) => encode(prompt),
            (None, Some(ids), None) => Ok(ids.clone()),
            (None, None, Some(messages)) => {
                let template = side.template.as_ref().ok_or_else(|| {
                    Fault::request("messages: this model has no chat template; send a prompt")
                })?;
                let words = template
                    .render(messages, true)
                    .map_err(|error| Fault::request(format!("messages: {error}")))?;
                encode(&words)
            }
            _ => Err(Fault::request("generate: expected one of prompt, ids and messages")),
        }
    }

    /// What is not added to any token would be ignored in silence.
    fn check_biases(&self, vocab_size: usize) -> Result<(), Fault> {
        match self.sampling.logit_bias.keys().find(|&&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(id) => {
                let most = vocab_size.saturating_sub(1);
                let message =
                    format!("sampling.logit_bias: expected ids from 0 to {most}, found {id}");
                Err(Fault::request(message))
            }
        }
    }

    fn logprobs(&self) -> Result<Option<usize>, Fault> {
        match self.logprobs {
            Some(found) if found > MAX_TOP_LOGPROBS => Err(Fault::request(format!(
                "logprobs: expected at most {MAX_TOP_LOGPROBS}, found {found}"
            ))),
            count => Ok(count),
        }
    }

    /// A grammar's end is where one of the model's own stop ids may come, so it ends with those alone.
    fn constraint(&self, side: &TextSide) -> Result<Option<Box<dyn Constraint>>, Fault> {
        let Some(form) = &self.constraint else { return Ok(None) };
        if self.stop_ids.as_ref().is_some_and(|ids| *ids != side.stop_ids) {
            return Err(Fault::request("stop_ids: not together with constraint"));
        }
        let constraint = side.grammars.constraint(form.clone());
        constraint.map(Some).map_err(|error| match error {
            GrammarError::Form(message) => Fault::request(format!("constraint: {message}")),
            GrammarError::Model(message) => Fault::failed(message),
        })
    }

    fn stop_strings(&self) -> Result<Vec<String>, Fault> {
        let strings = match &self.stop {
            None => Vec::new(),
            Some(StopStrings::One(string)) => vec![string.clone()],
            Some(StopStrings::Several(strings)) => strings.clone(),
        };
        if strings.len() > MAX_STOPS {
            return Err(too_many("stop", strings.len()));
        }
        match strings.iter().map(String::len).find(|len| !(1..=MAX_STOP_BYTES).contains(len)) {
            Some(found) => Err(Fault::request(format!(
                "stop: expected strings of 1 to {MAX_STOP_BYTES} bytes, found one of {found}"
            ))),
            None => Ok(strings),
        }
    }
}

fn too_many(field: &str, found: usize) -> Fault {
    Fault::request(format!("{field}: expected at most {MAX_STOPS}, found {found}"))
}
