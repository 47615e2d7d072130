//! `tandem doctor`: why a GPU is not seen.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use clap::builder::FalseyValueParser;
use serde_json::json;
use tandem_gpu::doctor::examine;

/// Look for what keeps a GPU from being used, and say what to install
#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

pub(crate) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let findings = examine(Path::new("/"));
    let found = tandem_gpu::devices();
    let mut out = std::io::stdout().lock();
    if args.json {
        let names = |devices: &Vec<tandem_gpu::Device>| -> Vec<String> {
            devices.iter().map(|device| device.info().full_name()).collect()
        };
        let opencl = match &found {
            Ok(devices) => json!({ "devices": names(devices) }),
            Err(reason) => json!({ "devices": [], "error": reason.to_string() }),
        };
        writeln!(out, "{}", json!({ "findings": findings, "opencl": opencl }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for finding in findings {
        writeln!(out, "{} {}", if finding.good { "ok  " } else { "look" }, finding.found)?;
        if let Some(advice) = finding.advice {
            writeln!(out, "     {advice}")?;
        }
    }
    match found {
        Err(reason) => writeln!(out, "look no OpenCL: {reason}")?,
        Ok(devices) if devices.is_empty() => {
            writeln!(out, "look OpenCL works, and has no devices")?
        }
        Ok(devices) => {
            for device in devices {
                writeln!(out, "ok   OpenCL device {}", device.info().full_name())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
