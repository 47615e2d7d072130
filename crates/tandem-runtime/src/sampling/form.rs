//! What an answer may look like, as data: what clients send to whoever writes it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The form that an answer is to have. As JSON it is an object with one field: `json_schema` or `tools`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// JSON that is valid against this schema.
    JsonSchema(Value),
    /// Calls of tools.
    Tools(ToolCalls),
}

/// Tools that an answer may call.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ToolCalls {
    /// The tools.
    pub tools: Vec<Tool>,
    /// Whether it must call one; else it may be plain text instead.
    #[serde(default)]
    pub required: bool,
    /// Whether it may call several.
    #[serde(default)]
    pub parallel: bool,
}

/// A tool.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The schema of its arguments, an object; without it, there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
}
