//! What the scheduler answers.

use std::fmt::Display;

use serde::Serialize;
use serde_json::{Map, Value};
use tandem_formats::one_line;
use tandem_runtime::RuntimeError;

/// What kind of error an answer tells of, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The message is not as it must be.
    BadRequest,
    /// There are no messages of that type.
    UnknownType,
    /// As many texts or packets wait as may: try again later.
    QueueFull,
    /// The scheduler is about to end.
    ShuttingDown,
    /// The client did not read its answers, and some were lost.
    SlowReader,
    /// Only clients on the scheduler's own machine may do that.
    Forbidden,
    /// The scheduler could not do it.
    Failed,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::BadRequest,
        Self::UnknownType,
        Self::QueueFull,
        Self::ShuttingDown,
        Self::SlowReader,
        Self::Forbidden,
        Self::Failed,
    ];

    /// As answers have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnknownType => "unknown_type",
            Self::QueueFull => "queue_full",
            Self::ShuttingDown => "shutting_down",
            Self::SlowReader => "slow_reader",
            Self::Forbidden => "forbidden",
            Self::Failed => "failed",
        }
    }
}

/// Why there is no other answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For programs.
    pub code: Code,
    /// For people: one line.
    pub message: String,
}

impl Fault {
    /// The message is not as it must be.
    pub fn request(message: impl Display) -> Self {
        // It may repeat what a stranger has written.
        Self { code: Code::BadRequest, message: one_line(message) }
    }

    /// The scheduler could not do it.
    pub fn failed(message: impl Display) -> Self {
        Self { code: Code::Failed, message: one_line(message) }
    }
}

impl From<&RuntimeError> for Fault {
    fn from(error: &RuntimeError) -> Self {
        let code = match error {
            RuntimeError::QueueFull { .. } => Code::QueueFull,
            RuntimeError::EngineStopped => Code::ShuttingDown,
            RuntimeError::Parameter { .. }
            | RuntimeError::EmptyPrompt
            | RuntimeError::PromptTooLong { .. }
            | RuntimeError::TokenId { .. }
            | RuntimeError::Constraint { .. }
            | RuntimeError::Operation { .. } => Code::BadRequest,
            _ => Code::Failed,
        };
        Self { code, message: one_line(error) }
    }
}

/// One message of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    fields: Map<String, Value>,
    /// A tensor, in a frame of its own.
    pub tensor: Option<Vec<u8>>,
}

impl Answer {
    /// It went well: `status` is `ok` or `success`, and `field` holds what came of it.
    pub fn new(status: &str, kind: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("status".to_owned(), status.into());
        fields.insert("type".to_owned(), kind.into());
        Self { fields, tensor: None }
    }

    /// It did not.
    pub fn error(fault: &Fault) -> Self {
        let mut fields = Map::new();
        fields.insert("status".to_owned(), "error".into());
        fields.insert("error".to_owned(), fault.message.clone().into());
        fields.insert("code".to_owned(), fault.code.name().into());
        Self { fields, tensor: None }
    }

    /// With another field. What cannot be written as JSON is `null`; nothing of ours is such.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).unwrap_or_default();
        self.fields.insert(name.to_owned(), value);
        self
    }

    /// With all fields of an object.
    #[must_use]
    pub fn with_all(mut self, value: impl Serialize) -> Self {
        if let Ok(Value::Object(fields)) = serde_json::to_value(value) {
            self.fields.extend(fields);
        }
        self
    }

    /// With the id of the message that it answers.
    #[must_use]
    pub fn to(mut self, id: Option<&Value>) -> Self {
        if let Some(id) = id {
            self.fields.insert("id".to_owned(), id.clone());
        }
        self
    }

    /// A field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// The frames that it is sent in.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        // A map with text for keys can be written.
        let json = serde_json::to_vec(&self.fields).unwrap_or_default();
        std::iter::once(json).chain(self.tensor.clone()).collect()
    }

    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        let tensor = self.tensor.as_ref().map_or(0, Vec::len);
        tensor + self.fields.values().map(size).sum::<usize>()
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => size_of_val(&values[..]) + values.iter().map(size).sum::<usize>(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + size(value)).sum(),
        _ => size_of::<Value>(),
    }
}
