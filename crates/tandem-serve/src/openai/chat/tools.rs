//! Tools that an answer may call.

use serde::Deserialize;
use serde_json::Value;
use tandem_grammar::MAX_TOOLS;
use tandem_runtime::{AnswerForm, Constraint, Tool, ToolCalls};
use utoipa::ToSchema;

use crate::app::App;
use crate::error::{ApiError, of_grammar};
use crate::openai::params::check_schema;

/// A tool that an answer may call.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatTool {
    /// `function`
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "there is but one")]
    kind: ToolKind,
    /// The function.
    pub(crate) function: Function,
}

/// The kind of a tool: a function.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolKind {
    /// A function.
    Function,
}

/// A function.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// What it does.
    pub(crate) description: Option<String>,
    /// The schema of its arguments, an object; without it, there are none.
    #[schema(value_type = Option<Object>)]
    pub(crate) parameters: Option<Value>,
    /// Arguments are always valid, whatever this says.
    #[expect(dead_code, reason = "always so")]
    strict: Option<bool>,
}

/// Whether an answer calls a tool.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"auto\", \"required\" or {\"type\":\"function\",\"function\":{\"name\":NAME}}"
)]
pub(crate) enum ToolChoice {
    /// In general.
    Mode(ToolMode),
    /// This one.
    Named(NamedTool),
}

/// Whether an answer calls a tool.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ToolMode {
    /// It does not.
    None,
    /// The model decides.
    Auto,
    /// It does.
    Required,
}

/// The tool that an answer calls.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedTool {
    /// `function`
    #[serde(rename = "type")]
    #[expect(dead_code, reason = "there is but one")]
    kind: ToolKind,
    /// The function.
    function: FunctionName,
}

/// A function by its name.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionName {
    /// The name.
    name: String,
}

/// Calls of some of the tools, or plain text where the choice leaves that open; none where there are no tools.
pub(super) fn constraint(
    app: &App,
    tools: &[ChatTool],
    choice: Option<&ToolChoice>,
    parallel: Option<bool>,
) -> Result<Option<Box<dyn Constraint>>, ApiError> {
    let named = match choice {
        Some(ToolChoice::Named(tool)) => Some(&*tool.function.name),
        _ => None,
    };
    let required = named.is_some() || matches!(choice, Some(ToolChoice::Mode(ToolMode::Required)));
    if tools.is_empty() {
        return match required {
            true => Err(invalid("tool_choice", "expected tools with it")),
            false => Ok(None),
        };
    }
    check_tools(tools)?;
    let callable: Vec<Tool> = tools
        .iter()
        .map(|tool| &tool.function)
        .filter(|function| named.is_none_or(|named| named == function.name))
        .map(|Function { name, parameters, .. }| Tool {
            name: name.clone(),
            parameters: parameters.clone(),
        })
        .collect();
    if callable.is_empty() {
        return Err(invalid("tool_choice", "expected the name of one of the tools"));
    }
    let parallel = named.is_none() && parallel.unwrap_or(true);
    let form = AnswerForm::Tools(ToolCalls { tools: callable, required, parallel });
    app.grammars.constraint(form).map(Some).map_err(|error| of_grammar("tools", error))
}

fn check_tools(tools: &[ChatTool]) -> Result<(), ApiError> {
    if tools.len() > MAX_TOOLS {
        return Err(invalid(
            "tools",
            &format!("expected at most {MAX_TOOLS}, found {}", tools.len()),
        ));
    }
    for (n, ChatTool { function, .. }) in tools.iter().enumerate() {
        // OpenAI's rule.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !(1..=64).contains(&function.name.len()) || !function.name.chars().all(plain) {
            let param = format!("tools[{n}].function.name");
            return Err(invalid(&param, "expected 1 to 64 letters, digits, _, - or ."));
        }
        if let Some(schema) = &function.parameters {
            check_schema(&format!("tools[{n}].function.parameters"), schema)?;
        }
    }
    Ok(())
}

fn invalid(param: &str, message: &str) -> ApiError {
    ApiError::invalid(param, format!("{param}: {message}"))
}
