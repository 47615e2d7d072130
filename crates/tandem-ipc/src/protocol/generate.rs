//! `generate`: a text.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tandem_model::chat::{ChatTemplate, Message};
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::{Generated, Request, SamplingParams, fresh_seed};

use super::Fault;

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
    /// Ids that end its texts.
    pub stop_ids: Vec<u32>,
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

/// What of the [usual](SamplingParams::usual) parameters is to be otherwise.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingFields {
    /// As in [`SamplingParams`], and so are the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_window: Option<usize>,
    /// See there; a new one for each text where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl SamplingFields {
    /// All parameters.
    pub fn params(&self) -> SamplingParams {
        let usual = SamplingParams::usual();
        SamplingParams {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            repetition_window: self.repetition_window.unwrap_or(usual.repetition_window),
            seed: self.seed.unwrap_or_else(fresh_seed),
            ..usual
        }
    }
}

impl From<&SamplingParams> for SamplingFields {
    fn from(params: &SamplingParams) -> Self {
        Self {
            temperature: Some(params.temperature),
            top_k: Some(params.top_k),
            top_p: Some(params.top_p),
            min_p: Some(params.min_p),
            repetition_penalty: Some(params.repetition_penalty),
            repetition_window: Some(params.repetition_window),
            seed: Some(params.seed),
        }
    }
}

impl Generate {
    /// The prompt's ids, and what is to be made of them by a model.
    ///
    /// # Errors
    /// Where there is no prompt or more than one, or something is out of range.
    pub fn prepare(&self, side: &TextSide) -> Result<(Vec<u32>, Request), Fault> {
        let sampling = self.sampling.params();
        sampling.validate().map_err(|error| Fault::request(format!("sampling: {error}")))?;
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

/// What came of it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct GenerateResult {
    /// The whole text.
    pub text: String,
    /// Its ids, without the stop id.
    pub ids: Vec<u32>,
    /// `stop`, `length`, `context_full` or `cancelled`.
    pub finish_reason: String,
    /// Start of the random numbers.
    pub seed: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those whose keys and values were there from before.
    pub cached_tokens: usize,
    /// Those that were computed.
    pub computed_tokens: usize,
    /// Tokens chosen after those of the prompt, the first left out.
    pub decoded_tokens: usize,
    /// Time from the turn's begin to the first token.
    pub prompt_ms: f64,
    /// Time for the others.
    pub decode_ms: f64,
}

impl GenerateResult {
    /// Of a text that was written with this seed.
    pub fn new(generated: Generated, seed: u64) -> Self {
        Self {
            finish_reason: generated.finish.name().to_owned(),
            seed,
            prompt_tokens: generated.prompt_tokens,
            cached_tokens: generated.cached_tokens,
            computed_tokens: generated.computed_tokens,
            decoded_tokens: generated.decoded_tokens,
            prompt_ms: generated.prompt_time.as_secs_f64() * 1e3,
            decode_ms: generated.decode_time.as_secs_f64() * 1e3,
            ids: generated.ids,
            text: generated.text,
        }
    }
}
