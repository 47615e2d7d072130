//! `tandem logits`: the door through which others check us.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use tandem_formats::safetensors::{Dtype, Tensor, write};
use tandem_model::router::Routing;
use tandem_model::{Checkpoint, reference};
use tandem_runtime::{LogitsFor, RouterTrace, evaluate};

use super::tokenize::parse_ids;
use crate::engine;
use crate::options::{ComputeOptions, ModelOption, PlacementOptions};
use crate::placement::Placing;

/// Write a model's logits and router choices for given tokens as safetensors, for others to compare
///
/// For T tokens: input_ids i32 (T), logits f32 (T x vocab), router_logits f32 (layers x T x experts), router_idx i32 and
/// router_w f32 (layers x T x 2).
#[derive(Args)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    model: ModelOption,

    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", env = "TANDEM_INPUT_IDS", required_unless_present = "text")]
    ids: Option<String>,

    /// Text instead of ids, where there are none (as it is, without the chat template)
    #[arg(long, value_name = "TEXT", env = "TANDEM_TEXT")]
    text: Option<String>,

    /// The file to write
    #[arg(short, long, value_name = "OUT.safetensors", env = "TANDEM_OUT")]
    out: PathBuf,

    /// Compute with the engine that everything uses, or with the plain f32 reference (slow, least memory)
    #[arg(long, value_enum, value_name = "ENGINE", env = "TANDEM_ENGINE", default_value_t = EngineChoice::Cpu)]
    engine: EngineChoice,

    /// Write logits of the last token only
    #[arg(long, env = "TANDEM_LAST", value_parser = FalseyValueParser::new())]
    last: bool,

    #[command(flatten)]
    compute: ComputeOptions,

    #[command(flatten)]
    place: PlacementOptions,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineChoice {
    Cpu,
    Reference,
}

pub(crate) fn logits(args: &LogitsArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let ids = input_ids(args, &checkpoint)?;
    let (mut logits, trace) = match args.engine {
        EngineChoice::Cpu => compute(args, &checkpoint, &ids)?,
        EngineChoice::Reference => {
            let output = reference::forward(&checkpoint, &ids)?;
            (output.logits, RouterTrace { logits: output.router_logits, routing: output.routing })
        }
    };
    if args.last {
        logits.drain(..logits.len() - checkpoint.config().vocab_size);
    }
    save(args, &checkpoint, &ids, &logits, &trace)?;
    note!(
        "{}: logits of {} tokens",
        args.out.display(),
        logits.len() / checkpoint.config().vocab_size
    );
    Ok(ExitCode::SUCCESS)
}

fn input_ids(args: &LogitsArgs, checkpoint: &Checkpoint) -> anyhow::Result<Vec<u32>> {
    let ids = match (&args.ids, &args.text) {
        (Some(ids), _) => parse_ids(ids)?,
        (None, Some(text)) => checkpoint.text()?.tokenizer.encode(text)?,
        (None, None) => Vec::new(),
    };
    if ids.is_empty() {
        bail!("--ids: expected at least one token id, found none");
    }
    let vocab_size = checkpoint.config().vocab_size;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        bail!("--ids: expected ids below the vocabulary size {vocab_size}, found {id}");
    }
    Ok(ids)
}

fn compute(
    args: &LogitsArgs,
    checkpoint: &Checkpoint,
    ids: &[u32],
) -> anyhow::Result<(Vec<f32>, RouterTrace)> {
    let mut placing = Placing::new(checkpoint, &args.compute, &args.place)?;
    let mut executor = engine::executor(checkpoint, &args.compute, &mut placing)?;
    let mut session = engine::session(checkpoint, &executor, &args.compute)?;
    let mut trace = RouterTrace::default();
    let wanted = if args.last { LogitsFor::Last } else { LogitsFor::All };
    let logits = evaluate(&mut executor, session.kv_mut(), ids, wanted, Some(&mut trace))?;
    engine::note_failure(&executor);
    Ok((logits, trace))
}

fn save(
    args: &LogitsArgs,
    checkpoint: &Checkpoint,
    ids: &[u32],
    logits: &[f32],
    trace: &RouterTrace,
) -> anyhow::Result<()> {
    let config = checkpoint.config();
    let choices: Vec<Routing> = trace.routing.iter().flatten().copied().collect();
    let i32s = |values: &mut dyn Iterator<Item = usize>| -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for value in values {
            bytes.extend(i32::try_from(value).context("an index does not fit i32")?.to_le_bytes());
        }
        Ok(bytes)
    };
    let f32s = |values: &mut dyn Iterator<Item = f32>| -> Vec<u8> {
        values.flat_map(f32::to_le_bytes).collect()
    };
    let input = i32s(&mut ids.iter().map(|&id| id as usize))?;
    let logits_bytes = f32s(&mut logits.iter().copied());
    let router_logits = f32s(&mut trace.logits.iter().flatten().copied());
    let router_idx = i32s(&mut choices.iter().flat_map(|r| r.experts))?;
    let router_w = f32s(&mut choices.iter().flat_map(|r| r.weights));
    let tokens = ids.len();
    let rows = logits.len() / config.vocab_size;
    let per_layer = |last: usize| vec![config.n_layers, tokens, last];
    let tensor = |name: &'static str, dtype, shape, data| Tensor { name, dtype, shape, data };
    let (input_shape, logits_shape) = (vec![tokens], vec![rows, config.vocab_size]);
    let (router_shape, choice_shape) = (per_layer(config.n_experts), per_layer(2));
    write(
        &args.out,
        &[
            tensor("input_ids", Dtype::I32, &input_shape[..], &input[..]),
            tensor("logits", Dtype::F32, &logits_shape, &logits_bytes),
            tensor("router_logits", Dtype::F32, &router_shape, &router_logits),
            tensor("router_idx", Dtype::I32, &choice_shape, &router_idx),
            tensor("router_w", Dtype::F32, &choice_shape, &router_w),
        ],
        &BTreeMap::new(),
    )?;
    Ok(())
}
