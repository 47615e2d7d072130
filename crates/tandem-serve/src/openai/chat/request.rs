//! What is asked of a conversation.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tandem_runtime::{AnswerForm, Constraint};
use utoipa::openapi::schema::{ArrayBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::conversation::Turn;
use super::tools::{self, ChatTool, ToolChoice, ToolMode};
use crate::app::App;
use crate::error::{ApiError, of_grammar};
use crate::openai::params::{MAX_TOP_LOGPROBS, check_schema, in_range, request};

request! {
    /// A conversation to continue.
    pub(crate) struct ChatRequest {
        /// The conversation so far.
        messages: Vec<Message>,
        /// As `max_tokens`, under its newer name.
        max_completion_tokens: Option<u32>,
        /// Whether to tell the log probabilities of the answer's tokens.
        logprobs: Option<bool>,
        /// Of how many of the most likely tokens besides.
        #[schema(minimum = 0, maximum = 20)]
        top_logprobs: Option<u32>,
        /// What form the answer has.
        response_format: Option<ResponseFormat>,
        /// Tools that the answer may call.
        tools: Option<Vec<ChatTool>>,
        /// Whether it calls one: `none`, `auto` (the default where there are tools), `required`, or which.
        tool_choice: Option<ToolChoice>,
        /// Whether it may call several.
        parallel_tool_calls: Option<bool>,
        /// Accepted, and without effect.
        #[expect(dead_code, reason = "clients send it")]
        metadata: Option<std::collections::BTreeMap<String, String>>,
        /// Accepted, and without effect: nothing is stored.
        #[expect(dead_code, reason = "clients send it")]
        store: Option<bool>,
        /// Accepted, and without effect.
        #[expect(dead_code, reason = "clients send it")]
        service_tier: Option<String>,
        /// Accepted, and without effect.
        #[expect(dead_code, reason = "clients send it")]
        safety_identifier: Option<String>,
        /// Accepted, and without effect: prompts that begin alike find each other without it.
        #[expect(dead_code, reason = "clients send it")]
        prompt_cache_key: Option<String>,
    }
}

/// A turn of the conversation.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    /// Who speaks.
    pub(crate) role: Role,
    /// What is said.
    #[schema(schema_with = content_schema)]
    pub(crate) content: Option<Content>,
    /// Calls that the assistant made.
    pub(crate) tool_calls: Option<Vec<MadeCall>>,
    /// The call that a tool answers.
    #[expect(dead_code, reason = "answers come in the order of their calls")]
    tool_call_id: Option<String>,
    /// Accepted, and without effect: the model knows roles, not names.
    #[expect(dead_code, reason = "clients send it")]
    name: Option<String>,
    /// Said instead of an answer.
    pub(crate) refusal: Option<String>,
    /// Accepted in messages that a server has sent, and without effect.
    #[expect(dead_code, reason = "clients send back what they got")]
    annotations: Option<Vec<Value>>,
    /// Accepted as null, as a server has sent it.
    pub(crate) audio: Option<Value>,
    /// Accepted as null, as a server has sent it.
    pub(crate) function_call: Option<Value>,
}

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// The one who says what the assistant is like.
    System,
    /// The same, under its newer name.
    Developer,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// A tool that the model has called.
    Tool,
}

/// What is said: a string, or parts of it.
#[derive(Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string or a list of parts with type \"text\" or \"refusal\""
)]
pub(crate) enum Content {
    /// A string.
    Text(String),
    /// Its parts.
    Parts(Vec<Part>),
}

/// All in one, as simple as it is: choices within the choice of null or this are more than some readers understand.
fn content_schema() -> Schema {
    let any = SchemaType::from_iter([Type::String, Type::Array, Type::Null]);
    let schema = ArrayBuilder::new().schema_type(any).items(Part::schema());
    schema.description(Some("What is said: a string, or parts of it")).build().into()
}

/// A part of what is said.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub(crate) enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A refusal.
    Refusal {
        /// What it says.
        refusal: String,
    },
}

/// A call that the assistant made.
#[derive(Clone, Deserialize, ToSchema)]
pub(crate) struct MadeCall {
    /// Its function.
    pub(crate) function: MadeFunction,
}

/// The function of a call.
#[derive(Clone, Deserialize, ToSchema)]
pub(crate) struct MadeFunction {
    /// Its name.
    pub(crate) name: String,
    /// Its arguments, as JSON.
    pub(crate) arguments: String,
}

/// What form an answer has.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub(crate) enum ResponseFormat {
    /// Any.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that is valid against a schema.
    JsonSchema {
        /// The schema.
        json_schema: NamedSchema,
    },
}

/// A schema with a name.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedSchema {
    /// Its name.
    #[expect(dead_code, reason = "for people")]
    name: String,
    /// What it is for.
    #[expect(dead_code, reason = "for people")]
    description: Option<String>,
    /// The schema; without it, any object.
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
    /// Answers are always valid, whatever this says.
    #[expect(dead_code, reason = "always so")]
    strict: Option<bool>,
}

/// A tag is a word. `serde` would take its number too.
fn with_word_as_tag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match value.get("type") {
        Some(tag) if !tag.is_string() => {
            Err(D::Error::custom(format!("type: expected a string, found {tag}")))
        }
        _ => Ok(value),
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(with_word_as_tag(deserializer)?).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for ResponseFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(with_word_as_tag(deserializer)?).map_err(D::Error::custom)
    }
}

impl ChatRequest {
    /// Tools that the answer may call.
    pub(crate) fn tools(&self) -> &[ChatTool] {
        match &self.tool_choice {
            Some(ToolChoice::Mode(ToolMode::None)) => &[],
            _ => self.tools.as_deref().unwrap_or_default(),
        }
    }

    /// Whether the answer may call a tool.
    pub(super) fn may_call(&self) -> bool {
        !self.tools().is_empty()
    }

    pub(super) fn max_tokens(&self) -> Result<Option<usize>, ApiError> {
        let (name, most) = match (self.max_completion_tokens, self.max_tokens) {
            (Some(most), _) => ("max_completion_tokens", Some(most)),
            (None, most) => ("max_tokens", most),
        };
        most.map_or(Ok(()), |most| in_range(name, most, 1, u32::MAX))?;
        Ok(most.map(|most| most as usize))
    }

    pub(super) fn top_logprobs(&self) -> Result<Option<usize>, ApiError> {
        let top = self.top_logprobs.unwrap_or(0);
        in_range("top_logprobs", top, 0, MAX_TOP_LOGPROBS)?;
        let wanted = self.logprobs == Some(true);
        if top > 0 && !wanted {
            let message = "top_logprobs: expected logprobs: true with it";
            return Err(ApiError::invalid("top_logprobs", message));
        }
        Ok(wanted.then_some(top as usize))
    }

    /// What the answer may look like.
    pub(super) fn constraint(&self, app: &App) -> Result<Option<Box<dyn Constraint>>, ApiError> {
        let format = match &self.response_format {
            None | Some(ResponseFormat::Text) => None,
            Some(format) => Some(format),
        };
        let (tools, choice) = (self.tools(), self.tool_choice.as_ref());
        match format {
            Some(_) if !tools.is_empty() => {
                let message = "response_format: not together with tools that may be called";
                Err(ApiError::invalid("response_format", message))
            }
            Some(format) => format.constraint(app).map(Some),
            None => tools::constraint(app, tools, choice, self.parallel_tool_calls),
        }
    }
}

impl ResponseFormat {
    fn constraint(&self, app: &App) -> Result<Box<dyn Constraint>, ApiError> {
        let param = "response_format.json_schema.schema";
        let schema = match self {
            Self::JsonSchema { json_schema: NamedSchema { schema: Some(schema), .. } } => {
                check_schema(param, schema)?;
                schema.clone()
            }
            _ => json!({"type": "object"}),
        };
        let constraint = app.grammars.constraint(AnswerForm::JsonSchema(schema));
        constraint.map_err(|error| of_grammar(param, error))
    }
}

impl Message {
    /// The same as text.
    pub(super) fn turn(&self) -> Turn {
        let content = match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts.iter().map(Part::text).collect(),
        };
        let content = match &self.refusal {
            Some(refusal) if content.is_empty() => refusal.clone(),
            _ => content,
        };
        let calls = self.tool_calls.iter().flatten();
        let calls = calls.map(|call| (call.function.name.clone(), call.function.arguments.clone()));
        Turn { role: self.role, content, calls: calls.collect() }
    }
}

impl Part {
    fn text(&self) -> &str {
        match self {
            Self::Text { text } => text,
            Self::Refusal { refusal } => refusal,
        }
    }
}
