//! `tandem export-onnx`: a model for other runtimes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use tandem_model::{Checkpoint, ModelError};
use tandem_onnx::{ExportOptions, WeightType, export};

use crate::options::ModelOption;
use crate::{engine, interrupt, progress};

/// Write a model as ONNX: a graph of standard operators (opset 21), SparseMixer included, for prompts and generation
///
/// Inputs and outputs are those of Hugging Face's exports, with keys and values of earlier tokens going in and out; batch
/// and length are free. The folder appears under its name only when it is whole.
#[derive(Args)]
pub(crate) struct ExportOnnxArgs {
    #[command(flatten)]
    model: ModelOption,

    /// The folder to write: a new or an empty one
    #[arg(value_name = "OUT_DIR")]
    output: PathBuf,

    /// Encoding of the weights
    #[arg(long, value_name = "TYPE", env = "TANDEM_ONNX_WEIGHTS", value_enum, default_value_t = Weights::F32)]
    weights: Weights,

    /// Write each operation of each layer as a model of its own, too; they share the weights' file
    #[arg(long, env = "TANDEM_ONNX_OP_BY_OP", value_parser = FalseyValueParser::new())]
    op_by_op: bool,
}

/// [`WeightType`] as an option.
#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    /// 32 bits
    F32,
    /// 16 bits, computed with in 32
    F16,
    /// 4 bits (lm_head 8, embedding 16), for ONNX Runtime's MatMulNBits
    Int4,
}

pub(crate) fn export_onnx(args: &ExportOnnxArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = Checkpoint::open(&engine::locate(args.model.model.as_deref())?)?;
    interrupt::install()?;
    let weights = match args.weights {
        Weights::F32 => WeightType::F32,
        Weights::F16 => WeightType::F16,
        Weights::Int4 => WeightType::Int4,
    };
    let options = ExportOptions { weights, op_by_op: args.op_by_op };
    let bar = progress::count(checkpoint.summary().total().weights, "weights");
    let started = Instant::now();
    let result = export(&checkpoint, &args.output, options, |done| {
        bar.inc(done);
        !interrupt::requested()
    });
    bar.finish_and_clear();
    if let Err(ModelError::Interrupted) = result {
        note!("interrupted; {} was not written", args.output.display());
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    }
    let exported = result?;
    if let Err(ModelError::NoTokenizer { .. }) = checkpoint.text() {
        note!("the model has no tokenizer, and neither has the export");
    }
    note!(
        "{}: {} of weights, {} single operations, in {:.1} s",
        args.output.display(),
        indicatif::DecimalBytes(exported.data_bytes),
        exported.single_operations,
        started.elapsed().as_secs_f64(),
    );
    Ok(ExitCode::SUCCESS)
}
