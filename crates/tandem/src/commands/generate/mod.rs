//! `tandem generate`: has a text written by a scheduler, and writes it here where there is none.

mod local;
mod remote;
mod writing;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_ipc::Address;
use tandem_ipc::protocol::{Generate, SamplingFields, StopStrings, TextSide};
use tandem_model::Checkpoint;

use crate::options::{ComputeOptions, GenerateOptions, ModelOption, PlacementOptions};
use crate::prompt::{PromptOptions, read_to_end};
use crate::{engine, interrupt};
use local::Local;
use remote::{Lost, Remote};
use writing::{Form, Writing};

/// Answer a prompt by a scheduler, or by itself where there is none: text to stdout as it is written
#[derive(Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    prompt: PromptOptions,

    /// The scheduler: tcp://HOST:PORT or ipc://PATH. Where there is none, or it goes, the text is written here, on the CPU;
    /// without this option as well
    #[arg(long, value_name = "ADDRESS", env = "TANDEM_CONNECT")]
    connect: Option<Address>,

    /// Seconds that the scheduler may be silent before it counts as gone
    #[arg(long, value_name = "SECONDS", env = "TANDEM_TIMEOUT", default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,

    /// Seconds for which a scheduler that is not there is looked for again
    #[arg(long, value_name = "SECONDS", env = "TANDEM_RECONNECT", default_value_t = 1.0, value_parser = seconds)]
    reconnect: f64,

    /// What to write, as a `generate` message of docs/protocol.md in a file (`-`: stdin); instead of a prompt and options
    #[arg(long, value_name = "FILE", env = "TANDEM_REQUEST", conflicts_with = "prompt")]
    request: Option<PathBuf>,

    #[command(flatten)]
    model: ModelOption,

    #[command(flatten)]
    generate: GenerateOptions,

    /// Print the answers that docs/protocol.md has for a stream, one a line
    #[arg(long, env = "TANDEM_EVENTS", value_parser = FalseyValueParser::new(), conflicts_with = "json")]
    events: bool,

    #[command(flatten)]
    compute: ComputeOptions,

    #[command(flatten)]
    place: PlacementOptions,
}

pub(crate) fn generate(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let wanted = wanted(args)?;
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let text = checkpoint.text()?;
    let side = TextSide::new(
        text.tokenizer.into(),
        text.template.map(std::sync::Arc::new),
        checkpoint.config().vocab_size,
        checkpoint.special_ids().stop.clone(),
    );
    let (prompt, request) =
        wanted.prepare(&side).map_err(|fault| anyhow::anyhow!(fault.message))?;
    interrupt::install()?;
    let form = match (args.prompt.json, args.events) {
        (true, _) => Form::Json,
        (_, true) => Form::Events,
        _ => Form::Text,
    };
    let mut writing = Writing::new(&side.tokenizer, (prompt, wanted.written_ids), request, form)?;
    let place = written_elsewhere(args, &checkpoint, &mut writing)?;
    if !writing.has_ended() {
        Local { args, checkpoint: &checkpoint, side: &side }.write(&mut writing, place)?;
    }
    writing.end()?;
    Ok(if interrupt::requested() {
        ExitCode::from(interrupt::EXIT_CODE)
    } else {
        ExitCode::SUCCESS
    })
}

/// Where the rest of a text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Where the options say.
    AsAsked,
    /// On the CPU, in place of a scheduler.
    Fallback,
}

/// Has a scheduler write as much as it can.
fn written_elsewhere(
    args: &GenerateArgs,
    checkpoint: &Checkpoint,
    writing: &mut Writing<'_>,
) -> anyhow::Result<Place> {
    let Some(address) = &args.connect else { return Ok(Place::AsAsked) };
    match Remote::new(address, args, checkpoint)?.write(writing)? {
        None => {}
        Some(Lost(reason)) if !args.prompt.quiet => {
            let where_ = if writing.ids().is_empty() { "writing" } else { "going on" };
            note!("{reason}: {where_} here, on the CPU");
        }
        Some(_) => {}
    }
    Ok(Place::Fallback)
}

/// The message that the options stand for.
fn wanted(args: &GenerateArgs) -> anyhow::Result<Generate> {
    if let Some(path) = &args.request {
        return read_request(path);
    }
    let prompt = args.prompt.text()?;
    let sampling = args.generate.sampling();
    sampling.validate()?;
    let base = Generate {
        max_tokens: args.generate.max_tokens,
        sampling: SamplingFields::from(&sampling),
        stop: Some(StopStrings::Several(args.generate.stop.clone())),
        stream: true,
        ..Generate::default()
    };
    if args.prompt.raw {
        return Ok(Generate { prompt: Some(prompt), ..base });
    }
    Ok(Generate { messages: Some(args.prompt.messages(&prompt)), ..base })
}

fn read_request(path: &std::path::Path) -> anyhow::Result<Generate> {
    use tandem_ipc::protocol::{Message, Request};
    let json = match path.as_os_str() == "-" {
        true => read_to_end(&mut std::io::stdin())?,
        false => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
    };
    let message = Message::parse(json.as_bytes());
    match message.map_err(|(_, fault)| anyhow::anyhow!("{}: {}", path.display(), fault.message))? {
        Message { request: Request::Generate(generate), .. } if generate.logprobs.is_some() => {
            bail!("{}: logprobs: the program prints none: ask a scheduler", path.display())
        }
        Message { request: Request::Generate(generate), .. } => Ok(*generate),
        other => {
            let found = other.request.name();
            bail!("{}: type: expected generate, found {found}", path.display())
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        Ok(_) => Err("expected 0 to 86400".to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}
