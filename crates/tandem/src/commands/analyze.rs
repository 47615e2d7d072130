//! `tandem analyze`: what a model costs, what ONNX has for it, and where to compute it.

mod machine;
mod tables;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use clap::builder::{FalseyValueParser, PossibleValuesParser};
use serde_json::json;
use tandem_formats::{AtomicFile, DType};
use tandem_model::convert::ConvertTypes;
use tandem_model::{Checkpoint, Outline, PhimoeConfig, Summary, TensorId, catalogue};
use tandem_onnx::analysis::{self, Analysis};

use crate::options::ModelOption;
use crate::{engine, figures};

/// Say what a model costs, which of its operations ONNX and ONNX Runtime have, and where a machine should compute them
///
/// Times are the least that memory and arithmetic allow (the roofline), not measurements. A folder with config.json is
/// enough; weights need not be there.
#[derive(Args)]
pub(crate) struct AnalyzeArgs {
    #[command(flatten)]
    model: ModelOption,

    /// Write the report as JSON to a file, too (schema: docs/onnx-analysis.schema.json)
    #[arg(short, long, value_name = "FILE", env = "TANDEM_ANALYZE_OUTPUT")]
    output: Option<PathBuf>,

    /// Machine to recommend devices for: `this` is measured (its CPU only), core-ultra-9-185h comes with Tandem, anything
    /// else is a JSON file
    #[arg(long, value_name = "PROFILE", env = "TANDEM_MACHINE", default_value = machine::THIS)]
    machine: String,

    /// As if the model had been quantized to this type [default: the types that it has]
    #[arg(long = "type", value_name = "TYPE", env = "TANDEM_TYPE",
          value_parser = PossibleValuesParser::new(ConvertTypes::WRITABLE.map(DType::name)))]
    matrices: Option<String>,

    /// Print JSON
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// What is analysed: a model with its weights, or the small files alone.
enum Source {
    Checkpoint(Checkpoint),
    Outline(Outline),
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(if Outline::is_all_of(path)? {
            Self::Outline(Outline::open(path)?)
        } else {
            Self::Checkpoint(Checkpoint::open(path)?)
        })
    }

    fn config(&self) -> &PhimoeConfig {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.config(),
            Self::Outline(outline) => &outline.config,
        }
    }

    fn stop_ids(&self) -> &[u32] {
        match self {
            Self::Checkpoint(checkpoint) => &checkpoint.special_ids().stop,
            Self::Outline(outline) => &outline.special.stop,
        }
    }

    fn dtype(&self, id: TensorId) -> DType {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.entry(id).dtype,
            Self::Outline(outline) => outline.dtype,
        }
    }
}

pub(crate) fn analyze(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let path = engine::locate(args.model.model.as_deref())?;
    let source = Source::open(&path)?;
    let types = args.matrices.as_deref().map(target_types).transpose()?;
    let dtype = |id| types.map_or_else(|| source.dtype(id), |types| types.of(id));
    refuse_broken_blocks(&path, source.config(), dtype)?;
    let machine = machine::profile(&args.machine)?;
    let analysis = analysis::analyze(source.config(), dtype, &machine);
    let summary = Summary::of(source.config(), dtype);
    let report = as_json(&path, &source, &summary, &analysis)?;
    if let Some(output) = &args.output {
        let mut file = AtomicFile::create(output)?;
        file.append(format!("{}\n", serde_json::to_string_pretty(&report)?).as_bytes())?;
        file.commit()?;
    }
    if args.json {
        writeln!(std::io::stdout(), "{report}")?;
    } else {
        let shape = figures::shape(source.config(), source.stop_ids());
        let components = figures::components(&summary);
        let tables = tables::text(&analysis);
        writeln!(std::io::stdout(), "{}\n\n{shape}\n\n{components}\n\n{tables}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The types that `tandem quantize` gives to tensors.
fn target_types(matrices: &str) -> anyhow::Result<ConvertTypes> {
    let matrices: DType = matrices.parse().map_err(anyhow::Error::msg)?;
    Ok(ConvertTypes::with_default_output(matrices))
}

fn refuse_broken_blocks(
    path: &Path,
    config: &PhimoeConfig,
    dtype: impl Fn(TensorId) -> DType,
) -> anyhow::Result<()> {
    for id in catalogue(config) {
        let (dtype, (_, cols)) = (dtype(id), id.shape(config));
        if dtype.bytes_for(cols).is_none() {
            bail!(
                "{}: columns of `{}`: expected a multiple of {} for type {dtype}, found {cols}",
                path.display(),
                id.hf_name(),
                dtype.block_len()
            );
        }
    }
    Ok(())
}

fn as_json(
    path: &Path,
    source: &Source,
    summary: &Summary,
    analysis: &Analysis,
) -> anyhow::Result<serde_json::Value> {
    let arithmetic: u64 = analysis.operations.iter().map(|o| o.decode.cost.arithmetic).sum();
    let mut report = json!({
        "path": path.display().to_string(),
        "architecture": "phimoe",
        "config": figures::config_json(source.config(), source.stop_ids()),
        "parts": figures::parts_json(summary),
        "total": figures::numbers_json(&summary.total()),
        "per_token": {
            "weight_bytes": summary.total().bytes_per_token,
            "arithmetic": arithmetic,
            "kv_bytes_per_token_of_context": analysis::kv_bytes(source.config(), 1),
        },
        "prompt_tokens": analysis::PROMPT,
        "onnx_opset": tandem_onnx::OPSET,
    });
    let serde_json::Value::Object(rest) = serde_json::to_value(analysis)? else {
        unreachable!("an analysis is an object")
    };
    report.as_object_mut().expect("an object").extend(rest);
    Ok(report)
}
