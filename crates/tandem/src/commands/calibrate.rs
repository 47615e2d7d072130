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
/// how long a hand-over takes. The results are kept for this model and device in the folder for configuration
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
    let device = match (&placing.device, &placing.missing) {
        (Some(device), _) => device.clone(),
        (None, reason) => bail!("nothing to compare: {}", reason.as_deref().unwrap_or("no GPU")),
    };
    let mut executor = engine::executor(&checkpoint, &args.compute, &mut placing)?;
    if let Some(reason) = &placing.missing {
        bail!("{}: {reason}", device.info().full_name());
    }
    let mut session = engine::session(&checkpoint, &executor, &args.compute)?;
    let effort = if args.quick { Effort::quick } else { Effort::thorough };
    let effort = effort(&executor, session.context());
    let identity = placement::identity(&checkpoint, &args.compute, &device);
    let bar = progress::spinner();
    let calibration = measure(&mut executor, session.kv_mut(), identity, &effort, &mut |next| {
        bar.set_message(next.to_owned());
    })
    .with_context(|| format!("{}: nothing is written", device.info().full_name()))?;
    bar.finish_and_clear();
    let path = calibration.save(&folder)?;
    let text = if args.json {
        serde_json::to_string(&calibration)?
    } else {
        format!("{}\nkept in {}", placement::measurements(&calibration), path.display())
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}
