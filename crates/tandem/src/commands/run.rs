//! `tandem run`: one prompt, one answer.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tandem_runtime::{FinishReason, Request};

use crate::backend::{Backend, BackendOptions};
use crate::options::{
    ComputeOptions, GenerateOptions, ModelOption, PlacementOptions, TelemetryOptions,
};
use crate::prompt::PromptOptions;
use crate::report::Statistics;
use crate::{engine, interrupt};

/// Answer a prompt: the text goes to stdout as it is written, statistics to stderr
#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    prompt: PromptOptions,

    #[command(flatten)]
    model: ModelOption,

    #[command(flatten)]
    generate: GenerateOptions,

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
    let prompt = args.prompt.text()?;
    args.generate.sampling().validate()?;
    let mut model =
        Backend::load(&args.backend, &args.model, &args.compute, &args.place, &args.telemetry)?;
    // Only now: until the first token, Ctrl-C ends the program as it ends any other.
    interrupt::install()?;
    if !args.prompt.quiet {
        note!("{}", model.describe());
    }
    let ids = prompt_ids(&model, args, &prompt)?;
    let request = engine::request(&args.generate, model.special_ids());
    let request = Request { continues_prompt: args.prompt.raw, ..request };
    let mut output = Output { json: args.prompt.json, error: None };
    let generated = model.generate(&ids, &request, &mut |text| output.show(text))?;
    output.end(&generated.text)?;
    model.note_failure();
    model.finish_telemetry()?;
    let statistics = Statistics::new(model.load_time(), &generated);
    let experts = model.expert_cache()?;
    if args.prompt.json {
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
    } else if !args.prompt.quiet {
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

fn prompt_ids(model: &Backend, args: &RunArgs, prompt: &str) -> anyhow::Result<Vec<u32>> {
    if args.prompt.raw {
        return Ok(model.text().tokenizer.encode(prompt)?);
    }
    engine::conversation(model.text(), model.path(), &args.prompt.messages(prompt))
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
