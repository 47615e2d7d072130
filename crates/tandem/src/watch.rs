//! From options to what watches passes, and holds them back.

use std::sync::Arc;

use tandem_runtime::bandwidth::{Capacity, HeavyOperations, MonitorParams};
use tandem_runtime::partition::{Partition, TelemetrySettings};
use tandem_runtime::policy::PolicyKind;
use tandem_runtime::telemetry::{Summary, TelemetryParams};
use tandem_runtime::{Executor, Instrumentation, InstrumentationParams};

use crate::options::TelemetryOptions;
use crate::placement::Placing;

/// Newest records that a service keeps in memory, for its trace and its newest token's timeline: some 150 tokens of a model
/// of 32 layers, 5 MB.
const RECENT: usize = 1 << 16;

/// What watches a service: everything, whether files are written or not, unless a config wants no telemetry.
pub(crate) fn service(
    options: &TelemetryOptions,
    executor: &Executor,
    placing: &Placing,
) -> anyhow::Result<Arc<Instrumentation>> {
    let telemetry = telemetry(options, executor, placing);
    let params = InstrumentationParams {
        telemetry: telemetry.map(|params| TelemetryParams { recent: RECENT, ..params }),
        monitor: monitor(executor, placing)?,
        heavy: heavy(placing),
        background_gbps: options.background,
        ..InstrumentationParams::default()
    };
    Ok(Instrumentation::start(params)?)
}

/// What watches a command that does one thing after the other: what its options and its config ask for, and mostly nothing.
pub(crate) struct Watch {
    instrumentation: Option<Arc<Instrumentation>>,
    /// Whether the summary is to be printed.
    prints: bool,
}

impl Watch {
    /// Starts to watch, and has the executor's passes tell.
    pub(crate) fn start(
        options: &TelemetryOptions,
        executor: &mut Executor,
        placing: &Placing,
    ) -> anyhow::Result<Self> {
        let settings = placing.config().map(Partition::telemetry);
        let prints = settings.is_some_and(TelemetrySettings::prints);
        let files = options.writes_files()
            || settings.is_some_and(|settings| settings.enabled && settings.path.is_some());
        let records = files || prints;
        // A policy that goes by the bandwidth must know it.
        let asks = placing
            .config()
            .is_some_and(|config| config.scheduling().policy == PolicyKind::BandwidthAware);
        if !records && !asks && options.background.is_none() {
            return Ok(Self { instrumentation: None, prints });
        }
        let watches = records || asks;
        let params = InstrumentationParams {
            // Nobody else reads beside it, so nobody waits for the token.
            heavy: heavy(placing).filter(|_| watches),
            monitor: if watches { monitor(executor, placing)? } else { MonitorParams::default() },
            telemetry: telemetry(options, executor, placing).filter(|_| records),
            background_gbps: options.background,
            ..InstrumentationParams::default()
        };
        let instrumentation = Instrumentation::start(params)?;
        executor.set_instruments(instrumentation.instruments());
        executor.set_watch(Some(Arc::clone(&instrumentation)));
        Ok(Self { instrumentation: Some(instrumentation), prints })
    }

    /// Completes the files; answers what they sum up.
    pub(crate) fn finish(&self) -> anyhow::Result<Option<Summary>> {
        let finished =
            self.instrumentation.as_ref().map(|instrumentation| instrumentation.finish());
        let summary = finished.transpose()?.flatten();
        if let Some(summary) = summary.as_ref().filter(|_| self.prints) {
            note!("{}", serde_json::to_string_pretty(summary)?);
        }
        Ok(summary)
    }
}

/// What is recorded, and where it goes: what options say comes before what a config says.
fn telemetry(
    options: &TelemetryOptions,
    executor: &Executor,
    placing: &Placing,
) -> Option<TelemetryParams> {
    let config = executor.model().config();
    let params = options.params(config);
    let Some(settings) = placing.config().map(Partition::telemetry) else { return Some(params) };
    match settings.params(config.n_layers, config.n_experts) {
        None => options.writes_files().then_some(params),
        Some(wanted) => Some(TelemetryParams {
            json: params.json.clone().or(wanted.json),
            csv: params.csv.clone().or(wanted.csv),
            metrics: wanted.metrics,
            marks: wanted.marks,
            ..params
        }),
    }
}

/// Operations that hold the bandwidth token.
fn heavy(placing: &Placing) -> Option<HeavyOperations> {
    placing.partition().bandwidth().heavy()
}

fn monitor(executor: &Executor, placing: &Placing) -> anyhow::Result<MonitorParams> {
    let capacity = match placing.capacity() {
        Some(capacity) => capacity,
        None => measured_capacity(executor)?,
    };
    Ok(placing.partition().bandwidth().monitor(Some(capacity)))
}

/// What the CPU's threads read from memory, measured now, in a tenth of a second or so. Without a calibration there is
/// nothing else to go by for the GPU: both share one memory.
fn measured_capacity(executor: &Executor) -> anyhow::Result<Capacity> {
    let rate = executor.read_bandwidth(executor.threads().decode)?;
    Ok(Capacity { cpu: rate, igpu: rate, together: rate })
}
