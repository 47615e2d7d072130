//! `tandem perplexity`: how well a model predicts a text.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use serde::Deserialize;
use tandem_model::Checkpoint;
use tandem_runtime::perplexity::{Perplexity, score};

use crate::options::{ComputeOptions, ModelOption, PlacementOptions};
use crate::placement::Placing;
use crate::{engine, progress};

/// Measure how well a model predicts a text: lower is better
///
/// FILE is plain text, which is cut into pieces of the context's length; or JSON with a list of texts under
/// "stories" or "texts", each of which is scored by itself. The first token of a piece is not scored.
#[derive(Args)]
pub(crate) struct PerplexityArgs {
    /// Text, or JSON with a list of texts
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    model: ModelOption,

    /// Cut each text of a JSON file to this many tokens
    #[arg(long, value_name = "TOKENS", env = "TANDEM_CUT", default_value_t = 400)]
    cut: usize,

    /// Score this id at the end of each text of a JSON file [default: the model's first stop id]
    #[arg(long, value_name = "ID", env = "TANDEM_END_ID")]
    end_id: Option<u32>,

    /// Print JSON
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    compute: ComputeOptions,

    #[command(flatten)]
    place: PlacementOptions,
}

pub(crate) fn perplexity(args: &PerplexityArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let pieces = pieces(args, &checkpoint)?;
    let mut placing = Placing::new(&checkpoint, &args.compute, &args.place)?;
    let mut executor = engine::executor(&checkpoint, &args.compute, &mut placing)?;
    let mut session = engine::session(&checkpoint, &executor, &args.compute)?;
    let tokens: usize = pieces.iter().map(Vec::len).sum();
    let bar = progress::count(tokens as u64, "tokens");
    let started = Instant::now();
    let mut sum = Perplexity::default();
    for piece in &pieces {
        sum.add(score(&mut executor, session.kv_mut(), piece)?);
        bar.inc(piece.len() as u64);
    }
    bar.finish_and_clear();
    engine::note_failure(&executor);
    let seconds = started.elapsed().as_secs_f64();
    let mut stdout = std::io::stdout();
    if args.json {
        let object = serde_json::json!({
            "perplexity": sum.perplexity(),
            "tokens_scored": sum.tokens,
            "texts": pieces.len(),
            "seconds": seconds,
        });
        writeln!(stdout, "{object}")?;
    } else {
        writeln!(
            stdout,
            "perplexity {:.4} over {} tokens of {} texts ({seconds:.1} s)",
            sum.perplexity(),
            sum.tokens,
            pieces.len()
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Deserialize)]
struct Texts {
    #[serde(alias = "stories")]
    texts: Vec<String>,
}

/// The token sequences to be scored.
fn pieces(args: &PerplexityArgs, checkpoint: &Checkpoint) -> anyhow::Result<Vec<Vec<u32>>> {
    let tokenizer = checkpoint.text()?.tokenizer;
    let context = args.compute.ctx.unwrap_or(checkpoint.config().context_length);
    if context < 2 || args.cut == 0 {
        bail!("--ctx and --cut: expected room for two tokens, the first of which is not scored");
    }
    let content = read(&args.file)?;
    let pieces: Vec<Vec<u32>> = if args.file.extension().is_some_and(|e| e == "json") {
        let parsed: Texts = serde_json::from_str(&content).with_context(|| {
            format!("{}: expected JSON with a list of texts under \"texts\"", args.file.display())
        })?;
        let end = args.end_id.or(checkpoint.special_ids().stop.first().copied());
        let cut = args.cut.min(context.saturating_sub(1));
        let encode = |text: &String| -> anyhow::Result<Vec<u32>> {
            let mut ids = tokenizer.encode(text)?;
            ids.truncate(cut);
            ids.extend(end);
            Ok(ids)
        };
        parsed.texts.iter().map(encode).collect::<anyhow::Result<_>>()?
    } else {
        tokenizer.encode(&content)?.chunks(context).map(<[u32]>::to_vec).collect()
    };
    if !pieces.iter().any(|piece| piece.len() > 1) {
        bail!("{}: expected a text of at least two tokens", args.file.display());
    }
    Ok(pieces)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{}: expected UTF-8 text", path.display()))
}
