//! `tandem inspect`: what a model is.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use clap::builder::FalseyValueParser;
use indicatif::DecimalBytes;
use serde_json::json;
use tandem_model::{Checkpoint, Container};

use crate::options::ModelOption;
use crate::{engine, figures};

/// Print what a model is: shape, weights, types, and the bytes that one token must read
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// The model, as with -m
    #[arg(value_name = "MODEL")]
    path: Option<String>,

    #[command(flatten)]
    model: ModelOption,

    /// Print JSON
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

pub(crate) fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let checkpoint =
        Checkpoint::open(&engine::locate(args.path.as_deref().or(args.model.model.as_deref()))?)?;
    let text = if args.json { as_json(&checkpoint) } else { as_text(&checkpoint) };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn as_text(checkpoint: &Checkpoint) -> String {
    let c = checkpoint.config();
    let tokenizer = match checkpoint.text() {
        Ok(text) => format!(
            "{} tokens, {}",
            text.tokenizer.vocab_size(),
            if text.template.is_some() { "with a chat template" } else { "no chat template" }
        ),
        Err(e) => format!("none ({e})"),
    };
    format!(
        "{}\n{}, PhiMoE, {}\n\n{}\ntokenizer        {tokenizer}\n\n{}",
        checkpoint.path().display(),
        match checkpoint.container() {
            Container::HuggingFace => "safetensors",
            Container::Gguf => "GGUF",
        },
        DecimalBytes(checkpoint.file_bytes()),
        figures::shape(c, &checkpoint.special_ids().stop),
        figures::components(&checkpoint.summary()),
    )
}

fn as_json(checkpoint: &Checkpoint) -> String {
    let summary = checkpoint.summary();
    json!({
        "path": checkpoint.path().display().to_string(),
        "architecture": "phimoe",
        "file_bytes": checkpoint.file_bytes(),
        "config": figures::config_json(checkpoint.config(), &checkpoint.special_ids().stop),
        "parts": figures::parts_json(&summary),
        "total": figures::numbers_json(&summary.total()),
    })
    .to_string()
}
