//! From options to what watches passes, and holds them back.

use std::sync::Arc;

use tandem_runtime::bandwidth::{Capacity, HeavyOperations, MonitorParams};
use tandem_runtime::telemetry::{Summary, TelemetryParams};
use tandem_runtime::{Executor, Instrumentation, InstrumentationParams};

use crate::options::TelemetryOptions;
use crate::placement::Placing;

/// Newest records that a service keeps in memory, for its trace and its newest token's timeline: some 150 tokens of a model
/// of 32 layers, 5 MB.
const RECENT: usize = 1 << 16;

/// What watches a service: everything, whether files are written or not.
pub(crate) fn service(
    options: &TelemetryOptions,
    executor: &Executor,
    placing: &Placing,
) -> anyhow::Result<Arc<Instrumentation>> {
    let telemetry = TelemetryParams { recent: RECENT, ..options.params(executor.model().config()) };
    let params = InstrumentationParams {
        telemetry: Some(telemetry),
        monitor: monitor(executor, placing)?,
        heavy: Some(HeavyOperations::default()),
        background_gbps: options.background,
        ..InstrumentationParams::default()
    };
    Ok(Instrumentation::start(params)?)
}

/// What watches a command that does one thing after the other: what its options ask for, and mostly nothing.
pub(crate) struct Watch(Option<Arc<Instrumentation>>);

impl Watch {
    /// Starts to watch, and has the executor's passes tell.
    pub(crate) fn start(
        options: &TelemetryOptions,
        executor: &mut Executor,
        placing: &Placing,
    ) -> anyhow::Result<Self> {
        let files = options.writes_files();
        if !files && options.background.is_none() {
            return Ok(Self(None));
        }
        let telemetry = files.then(|| options.params(executor.model().config()));
        let params = InstrumentationParams {
            // Nobody else reads beside it, so nobody waits for the token.
            heavy: files.then(HeavyOperations::default),
            monitor: if files { monitor(executor, placing)? } else { MonitorParams::default() },
            telemetry,
            background_gbps: options.background,
            ..InstrumentationParams::default()
        };
        let instrumentation = Instrumentation::start(params)?;
        executor.set_instruments(instrumentation.instruments());
        Ok(Self(Some(instrumentation)))
    }

    /// Completes the files; answers what they sum up.
    pub(crate) fn finish(&self) -> anyhow::Result<Option<Summary>> {
        let finished = self.0.as_ref().map(|instrumentation| instrumentation.finish());
        Ok(finished.transpose()?.flatten())
    }
}

fn monitor(executor: &Executor, placing: &Placing) -> anyhow::Result<MonitorParams> {
    let capacity = match placing.capacity() {
        Some(capacity) => capacity,
        None => measured_capacity(executor)?,
    };
    Ok(MonitorParams { capacity: Some(capacity), ..MonitorParams::default() })
}

/// What the CPU's threads read from memory, measured now, in a tenth of a second or so. Without a calibration there is
/// nothing else to go by for the GPU: both share one memory.
fn measured_capacity(executor: &Executor) -> anyhow::Result<Capacity> {
    let rate = executor.read_bandwidth(executor.threads().decode)?;
    Ok(Capacity { cpu: rate, igpu: rate, together: rate })
}
