//! `tandem calibrate`: what is fastest on this machine.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_runtime::calibrate::{Calibration, Effort, Identity, measure};
use tandem_runtime::{Executor, Session};

use crate::options::{ComputeOptions, ModelOption};
use crate::placement::{self, Placing};
use crate::{engine, prefill, progress};

/// Measure where this machine computes a model fastest, for --placement auto to use
///
/// Measured with the model itself: decode and prompts with everything on the CPU, everything on the GPU, the usual
/// partition, and rows split between both in several ratios; what memory allows each device alone and both together; and
/// how long a hand-over takes. Where oneDNN's library is found, also whether prompts are read faster with it
/// (--prefill-backend auto uses it then). The results are kept for this model and device in the folder for configuration
/// (tandem/calibration). Leave the machine alone meanwhile.
#[derive(Args)]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    model: ModelOption,

    /// Measure less: seconds instead of minutes, and figures that scatter more
    #[arg(long, env = "TANDEM_QUICK", value_parser = FalseyValueParser::new())]
    quick: bool,

    /// Print JSON
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    compute: ComputeOptions,
}

pub(crate) fn calibrate(args: &CalibrateArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let mut placing = Placing::with_gpu(&checkpoint, &args.compute);
    let device = placing.device.clone();
    let no_gpu = placing.missing.clone().unwrap_or_else(|| "no GPU".to_owned());
    let onednn = args.compute.prefill.open();
    match (&device, &onednn) {
        // What was asked for by name must be there.
        (None, _) if !args.compute.device.is_auto() => bail!("nothing to compare: {no_gpu}"),
        (None, Err(reason)) => bail!("nothing to compare: {no_gpu}; and {reason}"),
        _ => {}
    }
    let mut executor = engine::executor(&checkpoint, &args.compute, &mut placing)?;
    let mut session = engine::session(&checkpoint, &executor, &args.compute)?;
    let (mut text, mut object) = (Vec::new(), serde_json::json!({}));
    match device {
        None => text.push(format!("devices are not compared: {no_gpu}")),
        Some(device) => {
            if let Some(reason) = &placing.missing {
                bail!("{}: {reason}", device.info().full_name());
            }
            let identity = placement::identity(&checkpoint, &args.compute, &device);
            let calibration = devices(&mut executor, &mut session, identity, args.quick)
                .with_context(|| format!("{}: nothing is written", device.info().full_name()))?;
            let path = calibration.save(&placement::calibrations()?)?;
            text.push(placement::measurements(&calibration));
            text.push(format!("kept in {}", path.display()));
            object = serde_json::to_value(&calibration)?;
        }
    }
    match onednn {
        Err(reason) => text.push(format!("prompts are not compared: {reason}")),
        Ok(onednn) => {
            let compute = (&args.compute, args.quick);
            let rates =
                prefill::calibrate(onednn, &mut executor, &mut session, &checkpoint, compute)?;
            text.push(rates.describe());
            object["prefill"] = serde_json::to_value(&rates)?;
        }
    }
    let text = if args.json { object.to_string() } else { text.join("\n") };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Everything on one device, and on both.
fn devices(
    executor: &mut Executor,
    session: &mut Session,
    identity: Identity,
    quick: bool,
) -> anyhow::Result<Calibration> {
    let effort = if quick { Effort::quick } else { Effort::thorough };
    let effort = effort(executor, session.context());
    let bar = progress::spinner();
    let next = &mut |next: &str| bar.set_message(next.to_owned());
    let calibration = measure(executor, session.kv_mut(), identity, &effort, next)?;
    bar.finish_and_clear();
    Ok(calibration)
}
