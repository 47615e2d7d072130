//! Telemetry from its beginning to its files.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_formats::{AtomicFile, FormatError};

use super::collector::Collector;
use super::files::Files;
use super::metric::Metric;
use super::recorder::{Recorder, Shared};
use super::summary::{Sources, Summary};
use super::timeline::Timeline;
use super::trace::Trace;
use crate::bandwidth::{BandwidthToken, Monitor};
use crate::ticker::Ticker;

/// How often the ring is emptied.
const COLLECT_EVERY: Duration = Duration::from_millis(100);

/// What is recorded, and where it goes.
#[derive(Clone, Debug)]
pub struct TelemetryParams {
    /// Records that the ring holds. It is emptied ten times a second; a token makes some 500 records.
    pub ring: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Newest records that are kept in memory, for [`Telemetry::trace`] and [`Telemetry::timeline`].
    pub recent: usize,
    /// Parts of the summary.
    pub metrics: BTreeSet<Metric>,
    /// Where the summary is written to, as JSON.
    pub json: Option<PathBuf>,
    /// Where a row for each operation is written to.
    pub csv: Option<PathBuf>,
    /// Where a trace for Perfetto is written to.
    pub trace: Option<PathBuf>,
    /// Slices and values that the trace has at most, at some 130 bytes each. The first ones are kept.
    pub trace_events: u64,
    /// Whether tasks are marked for VTune, in programs with the feature `itt`.
    pub marks: bool,
}

impl TelemetryParams {
    /// For a model with so many layers, and experts a layer: all metrics and no files. The ring takes 65536 records
    /// (6 MB, more than a second of decoding), a trace 2 million events; none are kept in memory.
    pub fn new(layers: usize, experts: usize) -> Self {
        Self {
            ring: 1 << 16,
            layers,
            experts,
            recent: 0,
            metrics: Metric::all(),
            json: None,
            csv: None,
            trace: None,
            trace_events: 2_000_000,
            marks: cfg!(feature = "itt"),
        }
    }
}

/// A recorder, the thread that reads what it records, and the files that come of it.
pub struct Telemetry {
    recorder: Recorder,
    shared: Arc<Shared>,
    collector: Arc<Mutex<Collector>>,
    ticker: Ticker,
    metrics: BTreeSet<Metric>,
    json: Option<AtomicFile>,
    monitor: Option<Arc<Monitor>>,
    token: Option<BandwidthToken>,
}

/// Why there is no telemetry, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FormatError),
    /// A thread cannot be started.
    #[error("telemetry: cannot start a thread: {0}")]
    Thread(io::Error),
}

impl Telemetry {
    /// Begins to record. Files are begun as well; they appear under their names when they are complete.
    ///
    /// # Errors
    /// When a file cannot be created, or the system refuses a thread.
    pub fn start(params: &TelemetryParams) -> Result<Self, TelemetryError> {
        let TelemetryParams { json, csv, trace, trace_events, .. } = params;
        let shared =
            Arc::new(Shared::new(params.ring, params.layers, params.experts, params.marks));
        let (csv, trace) = (csv.as_deref(), trace.as_deref());
        let files = Files::create(csv, trace, shared.started(), *trace_events)?;
        let json = json.as_deref().map(AtomicFile::create).transpose()?;
        let collector =
            Arc::new(Mutex::new(Collector::new(Arc::clone(&shared), files, params.recent)));
        let collecting = Arc::clone(&collector);
        let collect = move || lock(&collecting).tick();
        let ticker = Ticker::start("tandem-telemetry", COLLECT_EVERY, collect)
            .map_err(TelemetryError::Thread)?;
        Ok(Self {
            recorder: Recorder::new(Arc::clone(&shared)),
            shared,
            collector,
            ticker,
            metrics: params.metrics.clone(),
            json,
            monitor: None,
            token: None,
        })
    }

    /// Records to this.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Summaries tell what `monitor` sees.
    pub fn watch_bandwidth(&mut self, monitor: Arc<Monitor>) {
        self.monitor = Some(monitor);
    }

    /// Summaries tell of `token`.
    pub fn watch_token(&mut self, token: BandwidthToken) {
        self.token = Some(token);
    }

    /// The newest records as a trace for Perfetto, in JSON: see [`TelemetryParams::recent`].
    pub fn trace(&self) -> Vec<u8> {
        let mut trace = Trace::new();
        let mut collector = lock(&self.collector);
        collector.collect();
        collector.recent().for_each(|record| trace.write(record));
        trace.into_text()
    }

    /// What a pass or a work packet of that number did, as far as it is still in memory: see
    /// [`TelemetryParams::recent`].
    pub fn timeline(&self, packet: u64) -> Timeline {
        let mut collector = lock(&self.collector);
        collector.collect();
        Timeline::new(packet, collector.recent())
    }

    /// Tokens that each expert of each layer got so far.
    pub fn selections(&self) -> Vec<Vec<u64>> {
        self.shared.selections()
    }

    /// The session so far.
    pub fn summary(&self) -> Summary {
        let mut collector = lock(&self.collector);
        collector.collect();
        self.summary_of(&collector)
    }

    /// Ends the session: completes the files, and answers the last summary. What is recorded later is lost.
    ///
    /// # Errors
    /// When a file cannot be written. A failure while the session went on has ended both the rows and the trace; the
    /// summary is written all the same.
    pub fn finish(mut self) -> Result<Summary, TelemetryError> {
        let summary = self.summary();
        let json = self.json.take().map_or(Ok(()), |file| write_json(file, &summary));
        // With the thread its share of the collector goes.
        drop(self.ticker);
        let collector = Arc::into_inner(self.collector).map(Mutex::into_inner);
        let collector =
            collector.expect("nobody else has it").unwrap_or_else(PoisonError::into_inner);
        collector.finish()?;
        json?;
        Ok(summary)
    }

    fn summary_of(&self, collector: &Collector) -> Summary {
        let sources = Sources {
            shared: &self.shared,
            totals: collector.totals(),
            trace_events_left_out: collector.trace_events_left_out(),
            bandwidth: self.monitor.as_deref().map(Monitor::session),
            token: self.token.as_ref().map(BandwidthToken::metrics),
        };
        Summary::new(sources, &self.metrics)
    }
}

fn write_json(mut file: AtomicFile, summary: &Summary) -> Result<(), FormatError> {
    let cannot_write = |file: &AtomicFile, error: serde_json::Error| {
        FormatError::io(file.final_path(), "cannot write", error.into())
    };
    serde_json::to_writer_pretty(&mut file, summary).map_err(|error| cannot_write(&file, error))?;
    file.append(b"\n")?;
    file.commit()
}

fn lock(collector: &Mutex<Collector>) -> MutexGuard<'_, Collector> {
    // A panic while a record was added costs that record.
    collector.lock().unwrap_or_else(PoisonError::into_inner)
}
