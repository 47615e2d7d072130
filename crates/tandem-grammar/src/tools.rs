//! The grammar of an answer that may or must call tools.

use std::fmt::Write;

use serde_json::{Value, json};
use tandem_runtime::ToolCalls;

use super::compact;

/// What begins a call.
pub const CALL_BEGINS: &str = "<tool_call>";
/// What ends one.
pub const CALL_ENDS: &str = "</tool_call>";

/// `<tool_call>{"name":NAME,"arguments":OBJECT}</tool_call>`, the way of Hermes and Qwen, in the dialect of `llguidance`.
pub(super) fn lark(calls: &ToolCalls) -> String {
    let more = if calls.parallel { "(\"\\n\"? call)*" } else { "" };
    let start = match calls.required {
        true => format!("start: call {more}\n"),
        // What does not begin as a call does is text.
        false => {
            format!("start: call {more} | text\ntext: TEXT?\nTEXT: /[ \\n]*[^< \\n](.|\\n)*/\n")
        }
    };
    let names: Vec<String> = (0..calls.tools.len()).map(|n| format!("call_{n}")).collect();
    let mut lark = format!("{start}call: {}\n", names.join(" | "));
    for (n, tool) in calls.tools.iter().enumerate() {
        let head = head(&tool.name);
        let begins = Value::from(format!("{CALL_BEGINS}{head}"));
        let ends = Value::from(format!("}}{CALL_ENDS}"));
        let schema = compact(&arguments(tool.parameters.as_ref()));
        // JSON's strings are the dialect's. Writing to a string cannot fail.
        let _ = writeln!(lark, "call_{n}: {begins} arguments_{n} {ends}");
        let _ = writeln!(lark, "arguments_{n}: %json {schema}");
    }
    lark
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
