//! `tandem devices`: what there is to compute with.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::builder::FalseyValueParser;
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use indicatif::BinaryBytes;
use serde::Serialize;
use tandem_cpu::measure::read_bandwidth;
use tandem_cpu::{Cpu, ThreadTeam};
use tandem_gpu::measure::{Bandwidth, bandwidth};
use tandem_gpu::{Device, DeviceChoice, DeviceInfo, Gpu, GpuOptions, Sharing, choose, devices};
use tandem_memory::AlignedBuffer;

use crate::options::DeviceOption;
use crate::threads;

/// Bytes that the CPU reads to measure its memory: far more than any cache.
const CPU_BYTES: usize = 256 << 20;

/// List what there is to compute with, what it can do, and why a device is not used
#[derive(Args)]
pub(crate) struct DevicesArgs {
    #[command(flatten)]
    device: DeviceOption,

    /// Leave out measuring how fast each device reads its memory
    #[arg(long)]
    no_measure: bool,

    /// Print JSON
    #[arg(long, env = "TANDEM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
}

/// Everything that is printed.
#[derive(Serialize)]
struct Report {
    cpu: CpuReport,
    /// Why there is no OpenCL, where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_opencl: Option<String>,
    devices: Vec<DeviceReport>,
}

#[derive(Serialize)]
struct CpuReport {
    name: String,
    instruction_set: String,
    cores: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes_per_second: Option<f64>,
}

#[derive(Serialize)]
struct DeviceReport {
    #[serde(flatten)]
    info: DeviceInfo,
    used: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not_used: Option<String>,
    paths: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sharing: Option<Sharing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<Bandwidth>,
    /// Why it could not be opened or measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn list(args: &DevicesArgs) -> anyhow::Result<ExitCode> {
    let (found, no_opencl) = match devices() {
        Ok(found) => (found, None),
        Err(reason) => (Vec::new(), Some(reason.to_string())),
    };
    let report = Report {
        cpu: cpu_report(!args.no_measure)?,
        no_opencl,
        devices: device_reports(found, &args.device.choice(), !args.no_measure),
    };
    let text = if args.json { serde_json::to_string(&report)? } else { as_text(&report) };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn cpu_report(measure: bool) -> anyhow::Result<CpuReport> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpu = Cpu::new(ThreadTeam::new(cores).context("threads to measure with")?);
    let read_bytes_per_second = if measure {
        let mut memory = AlignedBuffer::zeroed(CPU_BYTES)?;
        memory.advise_huge_pages();
        // Pages that were never written are all the same page of zeros.
        memory.fill(1);
        Some(read_bandwidth(&cpu, memory.typed()))
    } else {
        None
    };
    let instruction_set = cpu.isa().to_string();
    Ok(CpuReport { name: threads::cpu_name(), instruction_set, cores, read_bytes_per_second })
}

fn device_reports(found: Vec<Device>, choice: &DeviceChoice, measure: bool) -> Vec<DeviceReport> {
    let infos: Vec<_> = found.iter().map(Device::info).collect();
    // Without a model nothing is known of what it needs.
    let verdicts = choose(&infos, choice, tandem_gpu::Needs::default());
    let reports = found.iter().zip(verdicts).map(|(device, verdict)| {
        let mut report = DeviceReport {
            info: device.info().clone(),
            used: verdict.is_ok(),
            why_not_used: verdict.err().map(|reason| reason.to_string()),
            paths: device.info().paths().into_iter().map(tandem_gpu::Path::name).collect(),
            sharing: None,
            bytes_per_second: None,
            error: None,
        };
        if let Err(error) = try_out(device, measure, &mut report) {
            report.error = Some(error.to_string());
        }
        report
    });
    reports.collect()
}

/// Opens a device, as listing its promises does not.
fn try_out(device: &Device, measure: bool, report: &mut DeviceReport) -> tandem_gpu::Result<()> {
    let options =
        GpuOptions { cache: tandem_gpu::ProgramCache::of_user(), ..GpuOptions::default() };
    let gpu = Gpu::open(device.clone(), options)?;
    report.sharing = Some(gpu.memory().sharing());
    if measure {
        report.bytes_per_second = Some(bandwidth(&gpu)?);
    }
    Ok(())
}

fn as_text(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header([
        "",
        "device",
        "memory",
        "computes with",
        "bandwidth",
    ]);
    let cpu = &report.cpu;
    table.add_row([
        "used".to_owned(),
        cpu.name.clone(),
        "the machine's".to_owned(),
        format!("{}, {} threads", cpu.instruction_set, cpu.cores),
        cpu.read_bytes_per_second
            .map_or_else(String::new, |rate| format!("read {}", per_second(rate))),
    ]);
    for device in &report.devices {
        table.add_row(row(device));
    }
    let mut text = table.to_string();
    let mut say = |line: String| text.push_str(&format!("\n{line}"));
    if let Some(reason) = &report.no_opencl {
        say(format!("no OpenCL devices: {reason}"));
        say("`tandem doctor` looks for the cause".to_owned());
    } else if report.devices.is_empty() {
        say("no OpenCL devices: the installed drivers have none; `tandem doctor` looks for the cause".to_owned());
    }
    for device in &report.devices {
        let name = device.info.full_name();
        if let Some(reason) = &device.why_not_used {
            say(format!("{name} is not used: {reason}"));
        }
        if let Some(error) = &device.error {
            say(format!("{name} does not work: {error}"));
        }
    }
    text
}

fn row(device: &DeviceReport) -> [String; 5] {
    let info = &device.info;
    let sharing = match device.sharing {
        Some(Sharing::UsmHost) => "shared with the CPU, USM",
        Some(Sharing::HostPointer) => "shared with the CPU, host pointers",
        Some(Sharing::None) => "its own",
        None => "unknown",
    };
    let usm = [
        ("host", info.usm.host),
        ("device", info.usm.device),
        ("shared", info.usm.shared),
        ("system", info.usm.shared_system),
    ];
    let usm: Vec<_> = usm.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect();
    let sizes: Vec<_> = info.subgroup_sizes.iter().map(ToString::to_string).collect();
    let yes_or_no = |has: bool| if has { "yes" } else { "no" };
    let list = |items: &[&str]| if items.is_empty() { "none".to_owned() } else { items.join(" ") };
    let memory = format!(
        "{}\n{sharing}\nlargest piece {}\nlocal {}\nUSM: {}",
        BinaryBytes(info.memory),
        BinaryBytes(info.max_allocation),
        BinaryBytes(info.local_memory),
        list(&usm),
    );
    let computes = format!(
        "{} units, kernels: {}\nsubgroups: {}\nfp16 {}, integer dot product {}\nOpenCL C {}.{}",
        info.compute_units,
        device.paths.join(" "),
        list(&sizes.iter().map(String::as_str).collect::<Vec<_>>()),
        yes_or_no(info.fp16),
        yes_or_no(info.integer_dot_product),
        info.opencl_c.0,
        info.opencl_c.1,
    );
    let bandwidth = device.bytes_per_second.map_or_else(String::new, |rates| {
        format!("read {}\ncopy {}", per_second(rates.read), per_second(rates.copy))
    });
    let used = if device.used { "used" } else { "not used" };
    let name = format!("{}\n{}\ndriver {}\n{}", info.name, info.platform, info.driver, info.opencl);
    [used.to_owned(), name, memory, computes, bandwidth]
}

fn per_second(rate: f64) -> String {
    format!("{:.1} GB/s", rate * 1e-9)
}
