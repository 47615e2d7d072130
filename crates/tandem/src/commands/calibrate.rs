//! `tandem calibrate`: what is fastest on this machine.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use tandem_runtime::calibrate::{Effort, measure};

use crate::options::{ComputeOptions, ModelOption};
use crate::placement::{self, Placing};
use crate::{engine, progress};

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
    let folder = placement::calibrations()?;
    let checkpoint = engine::open(args.model.model.as_deref(), &args.compute)?;
    let mut placing = Placing::with_gpu(&checkpoint, &args.compute);
    let mut executor = engine::executor(&checkpoint, &args.compute, &mut placing)?;
    let mut session = engine::session(&checkpoint, &executor, &args.compute)?;
    let bar = progress::spinner();
    let devices = match (&placing.device, &placing.missing) {
        (Some(device), None) => {
            let effort = if args.quick { Effort::quick } else { Effort::thorough };
            let effort = effort(&executor, session.context());
            let identity = placement::identity(&checkpoint, &args.compute, device);
            let next = &mut |next: &str| bar.set_message(next.to_owned());
            let calibration = measure(&mut executor, session.kv_mut(), identity, &effort, next)
                .with_context(|| format!("{}: nothing is written", device.info().full_name()))?;
            let path = calibration.save(&folder)?;
            Ok((calibration, path))
        }
        (_, reason) => Err(reason.clone().unwrap_or_else(|| "no GPU".to_owned())),
    };
    bar.set_message("prompts with oneDNN");
    let compute = (&args.compute, args.quick);
    let prefill =
        args.compute.prefill.calibrate(&mut executor, session.kv_mut(), &checkpoint, compute)?;
    bar.finish_and_clear();
    let (mut text, mut object) = (Vec::new(), serde_json::json!({}));
    match (&devices, &prefill) {
        // What was asked for by name must be there.
        (Err(reason), _) if !args.compute.device.is_auto() => bail!("nothing to compare: {reason}"),
        (Err(reason), Err(onednn)) => bail!("nothing to compare: {reason}; and {onednn}"),
        (Err(reason), Ok(_)) => text.push(format!("devices are not compared: {reason}")),
        (Ok((calibration, path)), _) => {
            text.push(placement::measurements(calibration));
            text.push(format!("kept in {}", path.display()));
            object = serde_json::to_value(calibration)?;
        }
    }
    match &prefill {
        Ok(rates) => {
            text.push(rates.describe());
            object["prefill"] = serde_json::to_value(rates)?;
        }
        Err(reason) => text.push(format!("prompts are not compared: {reason}")),
    }
    let text = if args.json { object.to_string() } else { text.join("\n") };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
