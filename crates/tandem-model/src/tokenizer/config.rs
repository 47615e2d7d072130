//! `tokenizer_config.json`: the chat template and the names of special tokens.

use std::path::Path;

use serde_json::Value;
use tandem_formats::FormatError;

use crate::Result;
use crate::chat::ChatTemplate;
use crate::config::kind;

/// What is used of a model's `tokenizer_config.json`. Everything in it is optional.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerConfig {
    /// The source of the chat template; of several, the one called "default".
    pub chat_template: Option<String>,
    /// The token that begins a text.
    pub bos_token: Option<String>,
    /// The token that ends a text.
    pub eos_token: Option<String>,
    /// The token for what the vocabulary cannot express.
    pub unk_token: Option<String>,
    /// The token that fills up batches.
    pub pad_token: Option<String>,
    /// The longest text in tokens, where the file states a real limit.
    pub model_max_length: Option<usize>,
}

/// Above this a `model_max_length` is the converter's way to say "no limit" (it writes 1e30).
const NO_LIMIT: f64 = 1e12;

impl TokenizerConfig {
    /// Reads the text of a `tokenizer_config.json`; `path` is where it comes from, for messages.
    ///
    /// # Errors
    /// When the text is not JSON, or a value has a shape that no known writer gives it.
    pub fn from_json_bytes(path: &Path, json: &[u8]) -> Result<Self> {
        let root: Value = serde_json::from_slice(json)
            .map_err(|e| FormatError::invalid(path, "content", "a JSON object", e))?;
        if !root.is_object() {
            return Err(FormatError::invalid(path, "content", "a JSON object", kind(&root)).into());
        }
        let token = |field: &str| {
            // Tokens with settings are written as objects.
            let value = &root[field];
            let text = if value.is_object() { &value["content"] } else { value };
            optional_string(path, field, text)
        };
        Ok(Self {
            chat_template: chat_template(path, &root["chat_template"])?,
            bos_token: token("bos_token")?,
            eos_token: token("eos_token")?,
            unk_token: token("unk_token")?,
            pad_token: token("pad_token")?,
            model_max_length: max_length(path, &root["model_max_length"])?,
        })
    }

    /// The text of a `tokenizer_config.json` that says the same.
    pub fn to_json(&self) -> Value {
        let entries = [
            ("chat_template", &self.chat_template),
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
        ];
        let mut map: serde_json::Map<_, _> = entries
            .into_iter()
            .filter_map(|(key, text)| Some((key.to_owned(), Value::from(text.clone()?))))
            .collect();
        if let Some(length) = self.model_max_length {
            map.insert("model_max_length".to_owned(), length.into());
        }
        Value::Object(map)
    }

    /// Compiles the chat template, if there is one.
    ///
    /// # Errors
    /// When the template is no valid template.
    pub fn compile_chat_template(&self) -> Result<Option<ChatTemplate>> {
        let compile = |source| {
            ChatTemplate::new(source, self.bos_token.as_deref(), self.eos_token.as_deref())
        };
        self.chat_template.as_deref().map(compile).transpose()
    }
}

/// One template, or a list of named ones.
fn chat_template(path: &Path, value: &Value) -> Result<Option<String>> {
    let Some(templates) = value.as_array() else {
        return optional_string(path, "chat_template", value);
    };
    match templates.iter().find(|t| t["name"] == "default") {
        Some(template) => {
            optional_string(path, "chat_template[default].template", &template["template"])
        }
        None => Ok(None),
    }
}

fn max_length(path: &Path, value: &Value) -> Result<Option<usize>> {
    if value.is_null() {
        return Ok(None);
    }
    match value.as_f64() {
        Some(length) if length >= NO_LIMIT => Ok(None),
        // Exact: integers up to the limit fit an f64.
        Some(length) if length >= 1.0 => Ok(Some(length as usize)),
        _ => Err(FormatError::invalid(path, "model_max_length", "a positive number", value).into()),
    }
}

fn optional_string(path: &Path, field: &str, value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => Err(FormatError::invalid(path, field, "a string", kind(other)).into()),
    }
}
