//! `tandem chat`: a conversation at the terminal.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::builder::FalseyValueParser;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tandem_model::chat::Message;
use tandem_runtime::{FinishReason, Generated, RuntimeError};

use crate::engine::Engine;
use crate::interrupt;
use crate::options::{
    ComputeOptions, GenerateOptions, ModelOption, PlacementOptions, TelemetryOptions,
};
use crate::report::Statistics;

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    tell the model something before the conversation (and forget it so far); without TEXT, nothing
/help           this help
/exit           leave (or Ctrl-D)
Ctrl-C          stop the answer";

/// Talk with a model: line editing, history, Ctrl-C stops an answer, Ctrl-D leaves
#[derive(Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelOption,

    #[command(flatten)]
    generate: GenerateOptions,

    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", env = "TANDEM_SYSTEM")]
    system: Option<String>,

    /// Print statistics after each answer
    #[arg(long, env = "TANDEM_STATS", value_parser = FalseyValueParser::new())]
    stats: bool,

    #[command(flatten)]
    compute: ComputeOptions,

    #[command(flatten)]
    place: PlacementOptions,

    #[command(flatten)]
    telemetry: TelemetryOptions,
}

pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    args.generate.sampling().validate()?;
    let engine = Engine::load(&args.model, &args.compute, &args.place, &args.telemetry)?;
    engine.template()?;
    note!("{}\n/help shows what you can do besides talking", engine.describe());
    interrupt::install()?;
    let history = history_file();
    let mut editor = DefaultEditor::new().context("cannot read from the terminal")?;
    if let Some(path) = &history {
        // There is none before the first conversation.
        let _ = editor.load_history(path);
    }
    let mut conversation = Conversation::new(engine, args);
    loop {
        match editor.readline("> ") {
            Ok(line) => {
                let line = line.trim();
                if line.is_empty() {
                    continue;
                }
                editor.add_history_entry(line).context("cannot keep the history")?;
                if conversation.take(line)?.is_break() {
                    break;
                }
            }
            Err(ReadlineError::Interrupted) => note!("(Ctrl-D leaves)"),
            Err(ReadlineError::Io(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
                note!("that line is not UTF-8 text; it was not read");
            }
            Err(ReadlineError::Eof) => break,
            Err(e) => return Err(e).context("cannot read from the terminal"),
        }
    }
    if let Some(path) = &history {
        save_history(&mut editor, path);
    }
    conversation.engine.finish_telemetry()?;
    Ok(ExitCode::SUCCESS)
}

/// The conversation so far.
struct Conversation<'a> {
    engine: Engine,
    args: &'a ChatArgs,
    system: Option<String>,
    turns: Vec<Message>,
}

impl<'a> Conversation<'a> {
    fn new(engine: Engine, args: &'a ChatArgs) -> Self {
        Self { engine, args, system: args.system.clone(), turns: Vec::new() }
    }

    /// Takes a line of input: a command or something said.
    fn take(&mut self, line: &str) -> anyhow::Result<ControlFlow<()>> {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "/exit" | "/quit" => return Ok(ControlFlow::Break(())),
            "/help" => note!("{HELP}"),
            "/reset" => {
                self.turns.clear();
                note!("(forgotten)");
            }
            "/system" => {
                self.turns.clear();
                self.system = Some(rest.trim().to_owned()).filter(|text| !text.is_empty());
                note!("(a new conversation)");
            }
            _ if looks_like_command(word) => note!("{word}: no such command\n{HELP}"),
            _ => self.say(line)?,
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Lets the model answer. A prompt that is too long is reported and forgotten; the conversation goes on.
    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.turns.push(Message { role: "user".to_owned(), content: text.to_owned() });
        match self.answer() {
            Ok(generated) => {
                self.turns.push(Message {
                    role: "assistant".to_owned(),
                    content: generated.text.clone(),
                });
                self.remark(&generated);
                Ok(())
            }
            Err(e) => {
                self.turns.pop();
                match e.downcast_ref::<RuntimeError>() {
                    Some(RuntimeError::PromptTooLong { tokens, context }) => {
                        note!(
                            "the conversation has {tokens} tokens with this, but the context holds {context}: \
                             /reset begins a new one"
                        );
                        Ok(())
                    }
                    _ => Err(e),
                }
            }
        }
    }

    fn answer(&mut self) -> anyhow::Result<Generated> {
        let system =
            self.system.iter().map(|s| Message { role: "system".to_owned(), content: s.clone() });
        let messages: Vec<Message> = system.chain(self.turns.iter().cloned()).collect();
        let ids = self.engine.conversation(&messages)?;
        let request = self.engine.request(&self.args.generate);
        interrupt::reset();
        let mut failed = None;
        let generated = self.engine.session.generate(
            &mut self.engine.executor,
            &self.engine.text.tokenizer,
            &ids,
            &request,
            &mut |text| {
                let mut stdout = std::io::stdout();
                if let Err(e) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
                    failed = Some(e);
                }
                if failed.is_some() || interrupt::requested() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        )?;
        self.engine.note_failure();
        interrupt::reset();
        if let Some(e) = failed {
            return Err(e).context("cannot write the answer to stdout");
        }
        writeln!(std::io::stdout())?;
        Ok(generated)
    }

    fn remark(&self, generated: &Generated) {
        match generated.finish {
            FinishReason::Cancelled => note!("(stopped)"),
            FinishReason::ContextFull => {
                note!("(the context is full: /reset begins a new conversation)")
            }
            FinishReason::Stop | FinishReason::Length => {}
        }
        if self.args.stats {
            note!("{}", Statistics::new(self.engine.load_time, generated).line());
        }
    }
}

/// `/word`; not `/home/me`, which may well be the beginning of a question.
fn looks_like_command(word: &str) -> bool {
    word.strip_prefix('/')
        .is_some_and(|rest| !rest.is_empty() && rest.chars().all(char::is_alphabetic))
}

/// Where lines typed before are kept.
fn history_file() -> Option<PathBuf> {
    use etcetera::BaseStrategy;
    let base = etcetera::choose_base_strategy().ok()?;
    Some(base.state_dir().unwrap_or_else(|| base.data_dir()).join("tandem/history.txt"))
}

/// A history that cannot be kept is no reason to fail at the very end.
fn save_history(editor: &mut DefaultEditor, path: &std::path::Path) {
    let saved = match path.parent().map(std::fs::create_dir_all) {
        Some(Err(e)) => Err(ReadlineError::from(e)),
        _ => editor.save_history(path),
    };
    if let Err(e) = saved {
        note!("the history could not be kept in {}: {e}", path.display());
    }
}
