//! `tandem plan`: where each operation is computed, and why.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use clap::builder::FalseyValueParser;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use indicatif::DecimalBytes;
use serde::Serialize;
use tandem_model::Checkpoint;
use tandem_runtime::plan::{PassSize, Plan, Traffic};

use crate::engine;
use crate::options::{ComputeOptions, ModelOption, PlacementOptions, at_least_one};
use crate::placement::{self, Placing};

/// Show where each operation of a forward pass is computed, with the bytes that it reads, and why there
///
/// Layers that are alike are shown once. Bytes are those of weights, keys and values; of experts, as many as the tokens
/// can choose at most. Nothing is loaded or computed.
#[derive(Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    model: ModelOption,

    /// Tokens that go through the model together: 1 when an answer is written, up to --batch of a prompt
    #[arg(long, value_name = "N", env = "TANDEM_PLAN_TOKENS", default_value_t = 1, value_parser = at_least_one)]
    tokens: usize,

    /// Tokens in the cache after the pass [default: as many as --tokens]
    #[arg(long, value_name = "N", env = "TANDEM_PLAN_CONTEXT", value_parser = at_least_one)]
    context: Option<usize>,

    /// Print JSON, every step by itself
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    compute: ComputeOptions,

    #[command(flatten)]
    place: PlacementOptions,
}

/// Everything that is printed.
#[derive(Serialize)]
struct Report {
    model: String,
    tokens: usize,
    context: usize,
    /// What decides.
    why: String,
    device: Option<String>,
    /// Why there is none, where there is to be one.
    no_device: Option<String>,
    cpu_bytes: u64,
    igpu_bytes: u64,
    hand_overs: usize,
    steps: Vec<Step>,
}

/// One step.
#[derive(Clone, PartialEq, Serialize)]
struct Step {
    layer: Option<usize>,
    operation: &'static str,
    device: String,
    cpu_bytes: u64,
    igpu_bytes: u64,
    why: String,
}

pub(crate) fn plan(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let placing = Placing::new(&checkpoint, &args.compute, &args.place)?;
    let context = args.context.unwrap_or(args.tokens).max(args.tokens);
    let pass = PassSize { tokens: args.tokens, context };
    let report = report(args, &checkpoint, &placing, pass);
    let mut text = if args.json { serde_json::to_string(&report)? } else { as_text(&report) };
    if args.place.explain && !args.json {
        text += &format!("\n\n{}", placement::explain(&placing));
    }
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn report(args: &PlanArgs, checkpoint: &Checkpoint, placing: &Placing, pass: PassSize) -> Report {
    let planner = placing.planner(checkpoint);
    let plan: &Plan = planner.plan(pass.tokens, pass.context);
    let steps: Vec<Step> = plan
        .steps()
        .map(|step| {
            let layer = step.layer.map(usize::from);
            let at = (step.operation, layer, step.placement);
            let traffic = Traffic::new(checkpoint, args.compute.kv_type.into(), pass, at);
            Step {
                layer,
                operation: step.operation.name(),
                device: step.placement.to_string(),
                cpu_bytes: traffic.cpu,
                igpu_bytes: traffic.igpu,
                why: placing.decide(checkpoint, pass, step.operation, layer).reason.to_string(),
            }
        })
        .collect();
    Report {
        model: checkpoint.path().display().to_string(),
        tokens: pass.tokens,
        context: pass.context,
        why: placing.why.clone(),
        device: placing.device.as_ref().map(|device| device.info().full_name()),
        no_device: placing.missing.clone(),
        cpu_bytes: steps.iter().map(|step| step.cpu_bytes).sum(),
        igpu_bytes: steps.iter().map(|step| step.igpu_bytes).sum(),
        hand_overs: plan.hand_overs(),
        steps,
    }
}

fn as_text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["layer", "operation", "device", "CPU reads", "GPU reads", "why"]);
    for (layers, steps) in folded(&report.steps) {
        for (n, step) in steps.iter().enumerate() {
            table.add_row([
                if n == 0 { layers.clone() } else { String::new() },
                step.operation.to_owned(),
                step.device.clone(),
                bytes(step.cpu_bytes),
                bytes(step.igpu_bytes),
                step.why.clone(),
            ]);
        }
    }
    for column in [3, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let tokens = if report.tokens == 1 { "1 token" } else { &format!("{} tokens", report.tokens) };
    let mut lines = vec![
        format!("{}: {tokens}, context {}", report.model, report.context),
        format!("placed {}", report.why),
    ];
    lines.extend(report.device.as_ref().map(|device| format!("GPU: {device}")));
    lines.extend(report.no_device.as_ref().map(|reason| placement::without_gpu(reason)));
    format!(
        "{}\n\n{table}\n\nthe CPU reads {}, the GPU {}; the device changes {} times",
        lines.join("\n"),
        DecimalBytes(report.cpu_bytes),
        DecimalBytes(report.igpu_bytes),
        report.hand_overs,
    )
}

fn bytes(bytes: u64) -> String {
    if bytes == 0 { String::new() } else { DecimalBytes(bytes).to_string() }
}

/// Steps by layer, layers that follow each other and are alike once, with their numbers.
fn folded(steps: &[Step]) -> Vec<(String, &[Step])> {
    let layers: Vec<&[Step]> = steps.chunk_by(|a, b| a.layer == b.layer).collect();
    let alike = |a: &&[Step], b: &&[Step]| {
        let without_layer = |step: &Step| Step { layer: None, ..step.clone() };
        a[0].layer.is_some() == b[0].layer.is_some()
            && a.iter().map(without_layer).eq(b.iter().map(without_layer))
    };
    let groups = layers.chunk_by(alike);
    let name = |group: &[&[Step]]| match (group[0][0].layer, group[group.len() - 1][0].layer) {
        (Some(first), Some(last)) if first != last => format!("{first}-{last}"),
        (Some(layer), _) => layer.to_string(),
        _ => String::new(),
    };
    groups.map(|group| (name(group), group[0])).collect()
}
