//! `tandem tokenize`: text to ids and back.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_model::Checkpoint;
use tandem_model::detokenize::Special;

use crate::engine;
use crate::options::ModelOption;

/// Show how a model cuts text into tokens, or turn token ids back into text
#[derive(Args)]
pub(crate) struct TokenizeArgs {
    /// The text, or with --decode the ids. Without it, stdin is read as it is
    #[arg(value_name = "TEXT")]
    text: Vec<String>,

    #[command(flatten)]
    model: ModelOption,

    /// Turn ids (separated by commas or spaces) into text
    #[arg(short, long, env = "TANDEM_DECODE", value_parser = FalseyValueParser::new())]
    decode: bool,

    /// Print only the ids, separated by commas
    #[arg(long, env = "TANDEM_IDS", value_parser = FalseyValueParser::new())]
    ids: bool,
}

pub(crate) fn tokenize(args: &TokenizeArgs) -> anyhow::Result<ExitCode> {
    let text = Checkpoint::open(&engine::locate(args.model.model.as_deref())?)?.text()?;
    let input = match &args.text[..] {
        [] => {
            let mut input = String::new();
            std::io::stdin().read_to_string(&mut input).context("cannot read text from stdin")?;
            input
        }
        words => words.join(" "),
    };
    let mut stdout = std::io::stdout().lock();
    if args.decode {
        let ids = parse_ids(&input)?;
        if let Some(id) = ids.iter().find(|&&id| !text.tokenizer.has_token(id)) {
            bail!("token id {id}: expected an id that has a token, found none in this vocabulary");
        }
        writeln!(stdout, "{}", text.tokenizer.decode(&ids, Special::Keep))?;
        return Ok(ExitCode::SUCCESS);
    }
    let ids = text.tokenizer.encode(&input)?;
    if args.ids {
        let list: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(stdout, "{}", list.join(","))?;
        return Ok(ExitCode::SUCCESS);
    }
    for &id in &ids {
        writeln!(stdout, "{id:>8}  {:?}", text.tokenizer.token(id).unwrap_or_default())?;
    }
    writeln!(stdout, "{} tokens", ids.len())?;
    Ok(ExitCode::SUCCESS)
}

/// Ids separated by commas or white space.
pub(crate) fn parse_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse().with_context(|| format!("token id: expected a number, found `{word}`"))
        })
        .collect()
}
