//! The grammar of an answer that may or must call tools.

use std::fmt::Write;

use serde_json::{Value, json};

use super::compact;

/// What begins a call.
pub(crate) const CALL_BEGINS: &str = "<tool_call>";
/// What ends one.
pub(crate) const CALL_ENDS: &str = "</tool_call>";

/// Tools that an answer may call: `<tool_call>{"name":NAME,"arguments":OBJECT}</tool_call>`, the way of Hermes and Qwen.
pub(crate) struct ToolGrammar<'a> {
    /// Names, with the schemas of their arguments.
    pub(crate) tools: Vec<(&'a str, Option<&'a Value>)>,
    /// Whether it must call one; else it may be plain text instead.
    pub(crate) required: bool,
    /// Whether it may call several.
    pub(crate) parallel: bool,
}

impl ToolGrammar<'_> {
    /// In the dialect of `llguidance`.
    pub(super) fn lark(&self) -> String {
        let calls = if self.parallel { "(\"\\n\"? call)*" } else { "" };
        let start = match self.required {
            true => format!("start: call {calls}\n"),
            // What does not begin as a call does is text.
            false => {
                format!(
                    "start: call {calls} | text\ntext: TEXT?\nTEXT: /[ \\n]*[^< \\n](.|\\n)*/\n"
                )
            }
        };
        let names: Vec<String> = (0..self.tools.len()).map(|n| format!("call_{n}")).collect();
        let mut lark = format!("{start}call: {}\n", names.join(" | "));
        for (n, (name, schema)) in self.tools.iter().enumerate() {
            let head = head(name);
            let begins = Value::from(format!("{CALL_BEGINS}{head}"));
            let ends = Value::from(format!("}}{CALL_ENDS}"));
            let schema = compact(&arguments(*schema));
            // JSON's strings are the dialect's. Writing to a string cannot fail.
            let _ = writeln!(lark, "call_{n}: {begins} arguments_{n} {ends}");
            let _ = writeln!(lark, "arguments_{n}: %json {schema}");
        }
        lark
    }
}

/// What stands before a call's arguments.
fn head(name: &str) -> String {
    format!("{{\"name\":{},\"arguments\":", Value::from(name))
}

/// The schema of a tool's arguments: an object, whatever else; an empty one for a tool without.
fn arguments(schema: Option<&Value>) -> Value {
    match schema {
        Some(Value::Object(map)) => {
            let mut map = map.clone();
            map.entry("type").or_insert_with(|| json!("object"));
            Value::Object(map)
        }
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    }
}
