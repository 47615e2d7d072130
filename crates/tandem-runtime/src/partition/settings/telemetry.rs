//! The section `telemetry`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::partition::section::{Result, Section};
use crate::telemetry::{Metric, TelemetryParams};

/// What is recorded, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Whether anything is.
    pub enabled: bool,
    /// How the summary is written at the end.
    pub format: OutputFormat,
    /// Where to; without it nothing is written but what goes to the console.
    pub path: Option<PathBuf>,
    /// Parts of the summary.
    pub metrics: BTreeSet<Metric>,
    /// Whether tasks are marked for VTune.
    pub vtune: bool,
    /// Whether kernels' times are taken from the device's own clock.
    pub device_profiling: bool,
}

/// How the summary is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// A summary in JSON.
    #[default]
    Json,
    /// A row for each operation.
    Csv,
    /// A summary in JSON on standard error.
    Console,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            enabled: true,
            format: OutputFormat::Json,
            path: None,
            metrics: Metric::all(),
            vtune: false,
            device_profiling: false,
        }
    }
}

impl TelemetrySettings {
    /// What [`Telemetry::start`](crate::telemetry::Telemetry::start) is to be told, for a model with so many layers, and
    /// experts a layer; `None` where nothing is to be recorded.
    pub fn params(&self, layers: usize, experts: usize) -> Option<TelemetryParams> {
        let path = |format| self.path.clone().filter(|_| self.format == format);
        self.enabled.then(|| TelemetryParams {
            metrics: self.metrics.clone(),
            json: path(OutputFormat::Json),
            csv: path(OutputFormat::Csv),
            marks: self.vtune,
            ..TelemetryParams::new(layers, experts)
        })
    }

    /// Whether the summary is to be printed at the end.
    pub fn prints(&self) -> bool {
        self.enabled && self.format == OutputFormat::Console
    }
}

pub(in crate::partition) fn read(section: &Section<'_>) -> Result<TelemetrySettings> {
    section.only(&[
        "enabled",
        "output_format",
        "output_path",
        "metrics",
        "enable_vtune",
        "enable_level_zero_profiling",
        "enable_device_event_profiling",
    ])?;
    let usual = TelemetrySettings::default();
    let formats = [
        ("json", OutputFormat::Json),
        ("csv", OutputFormat::Csv),
        ("console", OutputFormat::Console),
    ];
    let format = section.one_of("output_format", &formats)?.unwrap_or(usual.format);
    let path = section.text("output_path", "a file's path")?.map(PathBuf::from);
    if let (Some(entry), OutputFormat::Console) = (section.get("output_path"), format) {
        return Err(section.invalid(entry, "no path, where output_format is console"));
    }
    let metrics = section.some_of("metrics", &Metric::ALL.map(|metric| (metric.name(), metric)))?;
    let vtune = section.flag("enable_vtune")?.unwrap_or(usual.vtune);
    if let (true, false, Some(entry)) = (vtune, cfg!(feature = "itt"), section.get("enable_vtune"))
    {
        let expected = "false: this program was built without the feature `itt`, which marks tasks";
        return Err(section.invalid(entry, expected));
    }
    let level_zero = section.flag("enable_level_zero_profiling")?;
    let event = section.flag("enable_device_event_profiling")?;
    if let (Some(a), Some(b), Some(entry)) =
        (level_zero, event, section.get("enable_device_event_profiling"))
        && a != b
    {
        let expected = format!("{a}, as enable_level_zero_profiling says, whose other name it is");
        return Err(section.invalid(entry, expected));
    }
    Ok(TelemetrySettings {
        enabled: section.flag("enabled")?.unwrap_or(usual.enabled),
        format,
        path,
        metrics: metrics.map_or(usual.metrics, |metrics| metrics.into_iter().collect()),
        vtune,
        device_profiling: level_zero.or(event).unwrap_or(usual.device_profiling),
    })
}
