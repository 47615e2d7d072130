//! Chat templates: a conversation becomes the text that the model was trained on.
//!
//! Templates are Jinja programs inside `tokenizer_config.json`, written for the `transformers` library. `minijinja`
//! runs them here, with the variables, filters and functions that `transformers` gives them.
//!
//! A template comes from a stranger, so it runs on a budget: `minijinja`'s fuel bounds its time and its memory
//! together, and recursion is bounded apart. A list that holds another twice, which holds a third twice, and so on,
//! is small but long when written out, and fuel is charged for a text only once it exists; so lists and maps are
//! printed and turned into JSON here, up to a limit. (What is left open is `~` and the string filters on such a list.)

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};
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
/// The longest text that a list or map may become, in bytes.
const MAX_TEXT: usize = 1 << 24;
/// The longest template; real ones stay below 50 kilobytes. Compiled, one takes up to a hundred times its length, and
/// no fuel is charged for that.
pub(crate) const MAX_TEMPLATE_BYTES: usize = 1 << 20;

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts of the tokens that begin and end a text.
    ///
    /// # Errors
    /// When the source is no valid template, or longer than any template has reason to be.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let message =
                format!("expected at most {MAX_TEMPLATE_BYTES} bytes, found {}", source.len());
            return Err(ModelError::Template { message });
        }
        let mut environment = Environment::new();
        // The settings of `transformers`' `apply_chat_template`.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| error(&e))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.set_formatter(print);
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
        let turn = |m: &Message| Value::from_pairs([("role", &*m.role), ("content", &*m.content)]);
        let mut variables = vec![
            ("messages", messages.iter().map(turn).collect()),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            // `transformers` always passes these, and templates test them against none.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        // A token that the tokenizer does not have is undefined, not none: it prints as nothing.
        variables.extend(self.bos.as_deref().map(|bos| ("bos_token", Value::from(bos))));
        variables.extend(self.eos.as_deref().map(|eos| ("eos_token", Value::from(eos))));
        let template = self.environment.get_template(NAME).map_err(|e| error(&e))?;
        template.render(Value::from_pairs(variables)).map_err(|e| error(&e))
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

/// What `{{ value }}` does.
fn print(out: &mut Output, state: &mut State, value: &Value) -> std::result::Result<(), Error> {
    if value.as_object().is_none() {
        return escape_formatter(out, state, value);
    }
    Ok(out.write_str(&text_of(value)?)?)
}

/// The text of a value, unless it is too long.
fn text_of(value: &Value) -> std::result::Result<String, Error> {
    let mut text = Bounded(Vec::new());
    let too_long =
        |_| Error::new(ErrorKind::InvalidOperation, "the text of a list or map is too long");
    write!(text, "{value}").map_err(too_long)?;
    Ok(text.into_string())
}

/// `raise_exception(message)`: how a template refuses a conversation.
fn raise_exception(message: &Value) -> std::result::Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, text_of(message)?))
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
    Ok(Value::from(out.into_string()))
}

/// A buffer that refuses to grow without end.
struct Bounded(Vec<u8>);

impl Bounded {
    fn into_string(self) -> String {
        // Both the JSON writer and the formatter write UTF-8.
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_TEXT - self.0.len() {
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
