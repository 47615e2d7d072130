//! `tandem run`: one prompt, one answer.

use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_model::chat::Message;
use tandem_runtime::{FinishReason, Request};

use crate::backend::{Backend, BackendOptions};
use crate::options::{
    ComputeOptions, GenerateOptions, ModelOption, PlacementOptions, TelemetryOptions,
};
use crate::report::Statistics;
use crate::{engine, interrupt};

/// Answer a prompt: the text goes to stdout as it is written, statistics to stderr
#[derive(Args)]
pub(crate) struct RunArgs {
    /// The prompt. Without it (or with `-`), stdin is read
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,

    #[command(flatten)]
    model: ModelOption,

    #[command(flatten)]
    generate: GenerateOptions,

    /// What the model is told before the prompt (not with --raw)
    #[arg(long, value_name = "TEXT", env = "TANDEM_SYSTEM")]
    system: Option<String>,

    /// Continue the prompt as plain text, without the model's chat template
    #[arg(long, env = "TANDEM_RAW", value_parser = FalseyValueParser::new())]
    raw: bool,

    /// Print one JSON object with text, ids and statistics instead of the text
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    /// Print no statistics
    #[arg(short, long, env = "TANDEM_QUIET", value_parser = FalseyValueParser::new())]
    quiet: bool,

    #[command(flatten)]
    compute: ComputeOptions,

    #[command(flatten)]
    place: PlacementOptions,

    #[command(flatten)]
    backend: BackendOptions,

    #[command(flatten)]
    telemetry: TelemetryOptions,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let prompt = prompt_text(&args.prompt)?;
    args.generate.sampling().validate()?;
    let mut model =
        Backend::load(&args.backend, &args.model, &args.compute, &args.place, &args.telemetry)?;
    // Only now: until the first token, Ctrl-C ends the program as it ends any other.
    interrupt::install()?;
    if !args.quiet {
        note!("{}", model.describe());
    }
    let ids = prompt_ids(&model, args, &prompt)?;
    let request = engine::request(&args.generate, model.special_ids());
    let request = Request { continues_prompt: args.raw, ..request };
    let mut output = Output { json: args.json, error: None };
    let generated = model.generate(&ids, &request, &mut |text| output.show(text))?;
    output.end(&generated.text)?;
    model.note_failure();
    model.finish_telemetry()?;
    let statistics = Statistics::new(model.load_time(), &generated);
    let experts = model.expert_cache()?;
    if args.json {
        let object = serde_json::json!({
            "text": generated.text,
            "ids": generated.ids,
            "prompt_ids": ids,
            "finish_reason": generated.finish.name(),
            "seed": request.sampling.seed,
            "statistics": statistics,
            "expert_cache": experts,
        });
        writeln!(std::io::stdout(), "{object}")?;
    } else if !args.quiet {
        note!("{}", statistics.line());
        if let Some(done) = &experts {
            note!("{}", engine::describe_expert_cache(done));
        }
        if generated.finish == FinishReason::ContextFull {
            note!("the answer ends here because the context of {} tokens is full", model.context());
        }
    }
    let interrupted = generated.finish == FinishReason::Cancelled;
    Ok(if interrupted { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

/// The prompt from the arguments or from stdin.
pub(crate) fn prompt_text(words: &[String]) -> anyhow::Result<String> {
    let mut stdin = std::io::stdin();
    let text = match words {
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

pub(crate) fn read_to_end(input: &mut impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).context("cannot read the prompt from stdin")?;
    String::from_utf8(bytes).context("the prompt on stdin is not UTF-8 text")
}

fn prompt_ids(model: &Backend, args: &RunArgs, prompt: &str) -> anyhow::Result<Vec<u32>> {
    if args.raw {
        return Ok(model.text().tokenizer.encode(prompt)?);
    }
    let message =
        |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let system = args.system.iter().map(|text| message("system", text));
    // A line break at the end of a piped prompt is the pipe's, not the user's.
    let messages: Vec<_> = system.chain([message("user", prompt.trim_end_matches('\n'))]).collect();
    engine::conversation(model.text(), model.path(), &messages)
}

/// The stream to stdout.
struct Output {
    json: bool,
    error: Option<std::io::Error>,
}

impl Output {
    fn show(&mut self, text: &str) -> ControlFlow<()> {
        if interrupt::requested() {
            return ControlFlow::Break(());
        }
        if self.json || text.is_empty() {
            return ControlFlow::Continue(());
        }
        let mut stdout = std::io::stdout();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.error = Some(e);
                ControlFlow::Break(())
            }
        }
    }

    /// Ends the text with a line break, as files and terminals want it.
    fn end(self, text: &str) -> anyhow::Result<()> {
        if let Some(e) = self.error {
            return Err(e).context("cannot write the answer to stdout");
        }
        if !self.json && !text.is_empty() && !text.ends_with('\n') {
            writeln!(std::io::stdout()).context("cannot write the answer to stdout")?;
        }
        Ok(())
    }
}
