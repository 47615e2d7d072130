//! Chat templates: a conversation becomes the text that the model was trained on.
//!
//! Templates are Jinja programs inside `tokenizer_config.json`, written for the `transformers` library. `minijinja`
//! runs them here, with the variables, filters and functions that `transformers` gives them. A template comes from a
//! stranger, so it runs on a budget: `minijinja`'s fuel bounds its time and its memory together, and recursion is
//! bounded apart.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};

use crate::error::one_line;
use crate::{ModelError, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: usually "system", "user" or "assistant".
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

/// The name that errors show.
const NAME: &str = "chat_template";
/// What one rendering may cost. By `minijinja`'s account that is this many instructions, or 64 times as many bytes:
/// well below a second, and hundreds of times what a full context needs.
const FUEL: u64 = 4_000_000;
/// Nesting of calls in a template; real ones stay below ten.
const RECURSION: usize = 100;
/// The longest text that `tojson` writes. The fuel accounts for it only once it is there.
const MAX_JSON: usize = 1 << 24;

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts of the tokens that begin and end a text.
    ///
    /// # Errors
    /// When the source is no valid template.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let mut environment = Environment::new();
        // The settings of `transformers`' `apply_chat_template`.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| error(&e))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| error(&e))?;
        Ok(Self { environment, bos: bos.map(str::to_owned), eos: eos.map(str::to_owned) })
    }

    /// The prompt for a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`), fails, or exceeds its budget.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| {
                [("role", m.role.as_str()), ("content", m.content.as_str())].into_iter().collect()
            })
            .collect();
        let mut variables = vec![
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            // `transformers` always passes these, and templates test them against none.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        // A token that the tokenizer does not have is undefined, not none: it prints as nothing.
        variables.extend(self.bos.as_deref().map(|bos| ("bos_token", Value::from(bos))));
        variables.extend(self.eos.as_deref().map(|eos| ("eos_token", Value::from(eos))));
        let template = self.environment.get_template(NAME).map_err(|e| error(&e))?;
        template.render(variables.into_iter().collect::<Value>()).map_err(|e| error(&e))
    }
}

/// The error with its causes on one line.
fn error(error: &Error) -> ModelError {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    ModelError::Template { message: one_line(&message) }
}

/// `raise_exception(message)`: how a template refuses a conversation.
fn raise_exception(message: String) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now(format)`: the local date and time.
fn strftime_now(format: &str) -> std::result::Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
}

/// `tojson(indent=..)` as `transformers` has it: Python's `json.dumps(ensure_ascii=False)`, without the escapes for
/// HTML that Jinja's own filter adds.
fn to_json(value: &Value, args: Kwargs) -> std::result::Result<Value, Error> {
    let indent: Option<usize> = args.get("indent")?;
    let ascii: Option<bool> = args.get("ensure_ascii")?;
    args.assert_all_used()?;
    if ascii == Some(true) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: ensure_ascii=true is not supported",
        ));
    }
    let mut out = Bounded(Vec::new());
    let written = match indent.map(|width| " ".repeat(width.min(16))) {
        Some(indent) => {
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}")))?;
    Ok(Value::from(String::from_utf8_lossy(&out.0).into_owned()))
}

/// A buffer that refuses to grow without end.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_JSON - self.0.len() {
            return Err(io::Error::other("the text is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Python's separators on one line: `, ` and `: `.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
