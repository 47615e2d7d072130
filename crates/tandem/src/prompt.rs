//! What is asked, and how the answer is shown: options that all commands have that answer one prompt.

use std::io::{IsTerminal, Read};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_model::chat::Message;

/// A prompt, and what the answer looks like.
#[derive(Args)]
pub(crate) struct PromptOptions {
    /// The prompt. Without it (or with `-`), stdin is read
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,

    /// What the model is told before the prompt (not with --raw)
    #[arg(long, value_name = "TEXT", env = "TANDEM_SYSTEM")]
    system: Option<String>,

    /// Continue the prompt as plain text, without the model's chat template
    #[arg(long, env = "TANDEM_RAW", value_parser = FalseyValueParser::new())]
    pub(crate) raw: bool,

    /// Print one JSON object with text, ids and figures instead of the text
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,

    /// Print neither notes nor statistics
    #[arg(short, long, env = "TANDEM_QUIET", value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,
}

impl PromptOptions {
    /// The prompt from the arguments or from stdin.
    pub(crate) fn text(&self) -> anyhow::Result<String> {
        let mut stdin = std::io::stdin();
        let text = match &self.prompt[..] {
            [] if stdin.is_terminal() => bail!(
                "no prompt: give it as an argument (tandem run \"Tell me a story.\") or pipe it in; \
                 `tandem chat` is for conversations"
            ),
            [] => read_to_end(&mut stdin)?,
            [dash] if dash == "-" => read_to_end(&mut stdin)?,
            words => words.join(" "),
        };
        if text.trim().is_empty() {
            bail!("the prompt is empty: give some text as an argument or on stdin");
        }
        Ok(text)
    }

    /// The conversation that asks for an answer to `prompt`.
    pub(crate) fn messages(&self, prompt: &str) -> Vec<Message> {
        let message = |role: &str, content: &str| Message {
            role: role.to_owned(),
            content: content.to_owned(),
        };
        let system = self.system.iter().map(|text| message("system", text));
        // A line break at the end of a piped prompt is the pipe's, not the user's.
        system.chain([message("user", prompt.trim_end_matches('\n'))]).collect()
    }
}

/// All of some input, which is text.
pub(crate) fn read_to_end(input: &mut impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).context("cannot read the prompt from stdin")?;
    String::from_utf8(bytes).context("the prompt on stdin is not UTF-8 text")
}
