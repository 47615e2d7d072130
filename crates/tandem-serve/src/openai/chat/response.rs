//! What comes of a conversation.

use serde::Serialize;
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::Generated;
use utoipa::ToSchema;

use super::calls::{Calls, Part};
use crate::openai::finish_reason;
use crate::openai::logprobs::ChatLogprobs;
use crate::openai::usage::Usage;

/// What all of an answer's parts are told with.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) choices: usize,
    /// Whether log probabilities are wanted.
    pub(super) logprobs: bool,
    /// Whether tools may be called.
    pub(super) calls: bool,
}

/// An answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    /// Its name.
    id: String,
    /// `chat.completion`
    object: &'static str,
    /// When it was asked for, in seconds since 1970.
    created: u64,
    /// The model.
    model: String,
    /// As many as were asked for.
    choices: Vec<Choice>,
    /// Tokens that were used.
    usage: Usage,
    /// Tandem's version: another one may give another answer for the same seed.
    system_fingerprint: &'static str,
}

/// One answer of several.
#[derive(Serialize, ToSchema)]
struct Choice {
    /// The how manieth.
    index: usize,
    /// What was said.
    message: AnswerMessage,
    /// Log probabilities, where they were asked for.
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    finish_reason: &'static str,
}

/// What was said.
#[derive(Serialize, ToSchema)]
struct AnswerMessage {
    /// `assistant`
    role: &'static str,
    /// The text; none where tools were called instead.
    content: Option<String>,
    /// None.
    refusal: Option<String>,
    /// Calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    tool_calls: Vec<Call>,
}

/// A call of a tool.
#[derive(Serialize, ToSchema)]
struct Call {
    /// Its name for the answer to it.
    id: String,
    /// `function`
    #[serde(rename = "type")]
    kind: &'static str,
    /// The function.
    function: CallFunction,
}

/// The function that is called.
#[derive(Serialize, ToSchema)]
struct CallFunction {
    /// Its name.
    name: String,
    /// Its arguments, as JSON.
    arguments: String,
}

/// Tandem's version.
pub(crate) const FINGERPRINT: &str = concat!("tandem-", env!("CARGO_PKG_VERSION"));

impl ChatCompletion {
    pub(super) fn new(head: Head, tokenizer: &Tokenizer, generated: &[Generated]) -> Self {
        let mut usage = Usage::default();
        for (number, generated) in generated.iter().enumerate() {
            usage.add(number, head.choices, generated);
        }
        let choice = |(index, generated): (usize, &Generated)| {
            let message = AnswerMessage::new(&generated.text, head.calls);
            let finish_reason = match message.tool_calls.is_empty() {
                true => finish_reason(generated.finish),
                false => calls_reason(generated),
            };
            let logprobs = || ChatLogprobs::new(tokenizer, &generated.logprobs);
            Choice { index, message, logprobs: head.logprobs.then(logprobs), finish_reason }
        };
        Self {
            choices: generated.iter().enumerate().map(choice).collect(),
            id: head.id,
            object: "chat.completion",
            created: head.created,
            model: head.model,
            usage,
            system_fingerprint: FINGERPRINT,
        }
    }
}

/// Why an answer that calls tools ended.
pub(super) fn calls_reason(generated: &Generated) -> &'static str {
    match finish_reason(generated.finish) {
        "stop" => "tool_calls",
        // The last call may be cut off.
        other => other,
    }
}

impl AnswerMessage {
    fn new(text: &str, may_call: bool) -> Self {
        let (mut content, mut tool_calls) = (String::new(), Vec::<Call>::new());
        let mut calls = Calls::default();
        let parts = match may_call {
            true => [calls.push(text), calls.finish()].concat(),
            false => vec![Part::Text(text.to_owned())],
        };
        for part in parts {
            match part {
                Part::Text(text) => content.push_str(&text),
                Part::Call { id, name, .. } => {
                    let function = CallFunction { name, arguments: String::new() };
                    tool_calls.push(Call { id, kind: "function", function });
                }
                Part::Arguments { text, .. } => {
                    if let Some(call) = tool_calls.last_mut() {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
        let said = tool_calls.is_empty() || !content.is_empty();
        Self { role: "assistant", content: said.then_some(content), refusal: None, tool_calls }
    }
}
