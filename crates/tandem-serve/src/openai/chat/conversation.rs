//! From a conversation to a prompt.

use serde_json::{Value, json};
use tandem_grammar::{CALL_BEGINS, CALL_ENDS};
use tandem_model::chat;

use super::request::{Message, Role};
use super::tools::ChatTool;
use crate::backend::ModelInfo;
use crate::error::{ApiError, of_text};

/// A conversation with the tools that may be called in it.
pub(crate) struct Conversation<'a> {
    messages: &'a [Message],
    tools: &'a [ChatTool],
}

/// A turn as text.
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) content: String,
    /// Names and arguments of functions that were called.
    pub(crate) calls: Vec<(String, String)>,
}

impl<'a> Conversation<'a> {
    pub(crate) fn new(messages: &'a [Message], tools: &'a [ChatTool]) -> Self {
        Self { messages, tools }
    }

    /// The ids after which the model writes its answer.
    ///
    /// # Errors
    /// Where there is nothing to answer, the model has no chat template, or its template refuses the conversation.
    pub(crate) fn prompt(&self, model: &ModelInfo) -> Result<Vec<u32>, ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::invalid("messages", "messages: expected at least one"));
        }
        if self.messages.iter().any(|m| m.audio.is_some() || m.function_call.is_some()) {
            let message = "messages: audio and function_call are not supported";
            return Err(ApiError::invalid("messages", message));
        }
        let Some(template) = &model.template else {
            let message = "this model has no chat template: use /v1/completions";
            return Err(ApiError::invalid("messages", message));
        };
        let refused = |error| of_text("messages", &error);
        let text = template.render(&self.turns(), true).map_err(refused)?;
        model.tokenizer.encode(&text).map_err(refused)
    }

    /// Turns that any template knows: what is said about tools becomes text.
    fn turns(&self) -> Vec<chat::Message> {
        let mut turns: Vec<chat::Message> =
            self.messages.iter().map(|m| m.turn().plain()).collect();
        if !self.tools.is_empty() {
            let about = self.about_tools();
            match turns.first_mut().filter(|turn| turn.role == "system") {
                Some(system) => system.content = format!("{}\n\n{about}", system.content),
                None => {
                    turns.insert(0, chat::Message { role: "system".to_owned(), content: about });
                }
            }
        }
        turns
    }

    /// The words are those that Hermes and Qwen models were trained with.
    fn about_tools(&self) -> String {
        let describe = |tool: &ChatTool| {
            let function = &tool.function;
            let description = function.description.as_deref();
            let none = json!({"type": "object", "properties": {}});
            let parameters = function.parameters.as_ref().unwrap_or(&none);
            let function = json!({
                "name": function.name,
                "description": description,
                "parameters": parameters,
            });
            json!({"type": "function", "function": function}).to_string()
        };
        let tools: Vec<String> = self.tools.iter().map(describe).collect();
        format!(
            "You may call one or more functions to assist with the user query. You are provided with function \
             signatures within <tools></tools> tags:\n<tools>\n{}\n</tools>\n\nFor each function call, answer with \
             a JSON object with the function's name and arguments within <tool_call></tool_call> tags:\n\
             {CALL_BEGINS}{{\"name\":FUNCTION,\"arguments\":OBJECT}}{CALL_ENDS}",
            tools.join("\n")
        )
    }
}

impl Turn {
    fn plain(self) -> chat::Message {
        let (role, content) = match self.role {
            Role::System | Role::Developer => ("system", self.content),
            Role::User => ("user", self.content),
            Role::Tool => ("user", format!("<tool_response>\n{}\n</tool_response>", self.content)),
            Role::Assistant => ("assistant", {
                let calls: Vec<String> = self.calls.into_iter().map(call).collect();
                let parts = [self.content].into_iter().filter(|content| !content.is_empty());
                parts.chain(calls).collect::<Vec<_>>().join("\n")
            }),
        };
        chat::Message { role: role.to_owned(), content }
    }
}

/// A call as the model writes it.
fn call((name, arguments): (String, String)) -> String {
    format!("{CALL_BEGINS}{{\"name\":{},\"arguments\":{arguments}}}{CALL_ENDS}", Value::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_about_tools_becomes_text() {
        let messages: Vec<Message> = serde_json::from_value(json!([
            {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}]},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "w", "arguments": "{\"a\":1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "sun"},
        ]))
        .unwrap();
        let tools: Vec<ChatTool> = serde_json::from_value(json!([
            {"type": "function", "function": {"name": "w", "description": "tells"}},
        ]))
        .unwrap();
        let turns = Conversation::new(&messages, &tools).turns();
        let roles: Vec<_> = turns.iter().map(|turn| &*turn.role).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(turns[0].content.starts_with("Be brief.\n\nYou may call"), "{}", turns[0].content);
        assert!(turns[0].content.contains("\"description\":\"tells\""), "{}", turns[0].content);
        let call = "<tool_call>{\"name\":\"w\",\"arguments\":{\"a\":1}}</tool_call>";
        assert_eq!(turns[2].content, call);
        assert_eq!(turns[3].content, "<tool_response>\nsun\n</tool_response>");
    }
}
