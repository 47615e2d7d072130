//! `tandem quantize`: a model into one smaller file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;
use tandem_formats::DType;
use tandem_model::convert::{ConvertTypes, convert};
use tandem_model::{Checkpoint, ModelError};

use crate::{engine, interrupt, progress};

/// Write a model as one GGUF file, with its weights in fewer bits if you like
///
/// Router and norms stay f32. 4-bit scales are searched for the least squared error. The file appears under its
/// final name only when it is whole.
#[derive(Args)]
pub(crate) struct QuantizeArgs {
    /// Model: a folder with config.json and safetensors, a .gguf file, or a name on the Hugging Face hub
    #[arg(value_name = "IN")]
    input: String,

    /// The GGUF file to write
    #[arg(value_name = "OUT.gguf")]
    output: PathBuf,

    /// Type of attention and expert weights
    #[arg(long = "type", value_name = "TYPE", env = "TANDEM_TYPE", value_parser = type_parser(), default_value = "q4_0")]
    matrices: String,

    /// Type of embedding and lm_head [default: q8_0 for q4_0, else the same as --type]
    #[arg(long = "output-type", value_name = "TYPE", env = "TANDEM_OUTPUT_TYPE", value_parser = type_parser())]
    outputs: Option<String>,
}

fn type_parser() -> PossibleValuesParser {
    PossibleValuesParser::new(ConvertTypes::WRITABLE.map(DType::name))
}

pub(crate) fn quantize(args: &QuantizeArgs) -> anyhow::Result<ExitCode> {
    let parse = |name: &str| name.parse::<DType>().map_err(anyhow::Error::msg);
    let mut types = ConvertTypes::with_default_output(parse(&args.matrices)?);
    if let Some(name) = &args.outputs {
        types.output = parse(name)?;
    }
    if !args.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        bail!("{}: expected a name that ends in .gguf", args.output.display());
    }
    let input = engine::locate(Some(&args.input))?;
    interrupt::install()?;
    if same_file(&input, &args.output) {
        bail!(
            "{}: expected another file than the input, found the same one",
            args.output.display()
        );
    }
    let checkpoint = Checkpoint::open(&input)?;
    let weights = checkpoint.summary().total().weights;
    let bar = progress::count(weights, "weights");
    let started = Instant::now();
    let result = convert(&checkpoint, &args.output, types, |done| {
        bar.inc(done);
        !interrupt::requested()
    });
    bar.finish_and_clear();
    if let Err(ModelError::Interrupted) = result {
        note!("interrupted; {} was not written", args.output.display());
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    }
    result?;
    if let Err(ModelError::NoTokenizer { .. }) = checkpoint.text() {
        note!("the model has no tokenizer: `tandem logits` can use the file, `tandem run` cannot");
    }
    let written = Checkpoint::open(&args.output)?;
    note!(
        "{}: {} weights, {} -> {} in {:.1} s",
        args.output.display(),
        weights,
        indicatif::DecimalBytes(checkpoint.file_bytes()),
        indicatif::DecimalBytes(written.file_bytes()),
        started.elapsed().as_secs_f64(),
    );
    Ok(ExitCode::SUCCESS)
}

fn same_file(a: &std::path::Path, b: &std::path::Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
