//! What happened, when, where and how long: events from every thread, and what comes of them.
//!
//! ```text
//!  executors ─┐
//!  token ─────┼─> Recorder ──> ring ──> Collector ──> totals ──> Summary (JSON)
//!  monitor ───┘   (any thread)   │      (one thread)  └─> spool ─> a row for each operation (CSV)
//!                                v                 (when idle) └─> trace for Perfetto (JSON)
//!                           lost, counted
//! ```
//!
//! [`Telemetry::start`] begins a session; its [`Recorder`] is handed to whoever has something to tell. A recorder that is
//! [off](Recorder::off) costs a comparison. `docs/telemetry.md` defines every figure.

mod busy;
mod client;
mod collector;
mod csv;
mod durations;
mod event;
mod files;
mod marks;
mod metric;
mod recorder;
mod session;
mod spool;
mod summary;
mod text;
mod timeline;
mod totals;
mod trace;

pub use client::ClientTelemetry;
pub use durations::DurationSummary;
pub(crate) use durations::Durations;
pub use event::{Activity, Event, Gauge, Level, Record, Task};
pub use metric::{Metric, UnknownMetric};
pub use recorder::{Recorder, Span};
pub use session::{Telemetry, TelemetryError, TelemetryParams};
pub use summary::{
    BubbleSummary, DeviceSummary, LayerSummary, OperationSummary, OverlapSummary, QueueSummary,
    Summary,
};
pub use timeline::{Timeline, TimelineEvent};
