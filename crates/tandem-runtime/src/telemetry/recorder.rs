//! Recording, from any thread, at the cost of some ten nanoseconds and two readings of the clock; or of nothing.
//!
//! Records go to a ring of fixed size. Writers never wait for the reader: when the ring is full, the oldest record gives
//! way and is counted as lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use jiff::Timestamp;

use super::event::{Activity, Event, Gauge, Level, Record, Task};
use super::marks::Mark;

/// Where executors, the token and the monitor record what happens. Clones record to the same ring; one that is
/// [off](Self::off) does nothing, and does not look at the clock.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Option<Arc<Shared>>);

/// What writers and the reader share.
#[derive(Debug)]
pub(super) struct Shared {
    ring: ArrayQueue<Record>,
    lost: AtomicU64,
    epoch: Instant,
    started: Timestamp,
    queue_depth: AtomicUsize,
    peak_queue_depth: AtomicUsize,
    /// Tokens that each expert got, `layers x experts`.
    selections: Vec<AtomicU64>,
    experts: usize,
    /// Whether tasks are marked for VTune.
    marks: bool,
}

impl Recorder {
    /// One that records nothing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// One that records to `shared`.
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self(Some(shared))
    }

    /// Whether it records.
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// `task` runs from now until what this returns is dropped.
    #[must_use = "the task ends where the span is dropped"]
    pub fn span(&self, task: Task) -> Span<'_> {
        Span(self.0.as_deref().map(|shared| Open {
            shared,
            task,
            mark: shared.marks.then(|| Mark::begin(task)),
            started: Instant::now(),
            bytes: 0,
            failure: None,
        }))
    }

    /// Marks `task` for VTune, where that is wanted, from now until what this returns is dropped, in this thread: for who
    /// [records](Self::record) it afterwards.
    pub(crate) fn mark(&self, task: Task) -> Option<Mark> {
        let wanted = self.0.as_deref().is_some_and(|shared| shared.marks);
        wanted.then(|| Mark::begin(task))
    }

    /// `task` has run, and moved so many bytes, by a clock that was read elsewhere.
    pub fn record(&self, task: Task, started: Instant, ended: Instant, bytes: u64) {
        self.record_activity(Activity::Compute, task, started, ended, bytes);
    }

    /// As [`Self::record`], of a task that has failed.
    pub fn record_failure(
        &self,
        task: Task,
        started: Instant,
        ended: Instant,
        reason: &dyn std::fmt::Display,
    ) {
        if let Some(shared) = &self.0 {
            let failure = Some(reason.to_string().into());
            shared.event(Activity::Compute, task, started, ended, 0, failure);
        }
    }

    /// As [`Self::record`], of anything.
    pub(crate) fn record_activity(
        &self,
        activity: Activity,
        task: Task,
        started: Instant,
        ended: Instant,
        bytes: u64,
    ) {
        if let Some(shared) = &self.0 {
            shared.event(activity, task, started, ended, bytes, None);
        }
    }

    /// `gauge` has this value now.
    pub fn level(&self, gauge: Gauge, value: f64) {
        if let Some(shared) = &self.0 {
            let at = shared.nanoseconds(Instant::now());
            shared.push(Record::Level(Level { gauge, at, value }));
        }
    }

    /// So many requests or packets wait now.
    pub fn queue_depth(&self, depth: usize) {
        if let Some(shared) = &self.0 {
            shared.queue_depth.store(depth, Ordering::Relaxed);
            shared.peak_queue_depth.fetch_max(depth, Ordering::Relaxed);
            self.level(Gauge::QueueDepth, depth as f64);
        }
    }

    /// The router of `layer` has sent a token to each of `experts`. Layers and experts that the model does not have are
    /// left out.
    pub fn experts(&self, layer: usize, experts: impl IntoIterator<Item = usize>) {
        let Some(shared) = &self.0 else { return };
        let of_layer = shared.selections.chunks(shared.experts.max(1)).nth(layer);
        for expert in experts {
            if let Some(count) = of_layer.and_then(|counts| counts.get(expert)) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Shared {
    /// A ring for so many records (at least one), and a model with so many layers, and experts a layer.
    pub(super) fn new(capacity: usize, layers: usize, experts: usize, marks: bool) -> Self {
        Self {
            ring: ArrayQueue::new(capacity.max(1)),
            lost: AtomicU64::new(0),
            epoch: Instant::now(),
            started: Timestamp::now(),
            queue_depth: AtomicUsize::new(0),
            peak_queue_depth: AtomicUsize::new(0),
            selections: (0..layers * experts).map(|_| AtomicU64::new(0)).collect(),
            experts,
            marks,
        }
    }

    /// The oldest record, taken out.
    pub(super) fn pop(&self) -> Option<Record> {
        self.ring.pop()
    }

    /// Records that the ring holds at most.
    pub(super) fn capacity(&self) -> usize {
        self.ring.capacity()
    }

    /// Records that gave way before they were read.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// When the recorder was made.
    pub(super) const fn started(&self) -> Timestamp {
        self.started
    }

    /// How long ago that was.
    pub(super) fn elapsed(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Requests or packets that wait, and the most that ever did.
    pub(super) fn queue_depths(&self) -> (usize, usize) {
        let depth = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        (depth(&self.queue_depth), depth(&self.peak_queue_depth))
    }

    /// Tokens that each expert of each layer got.
    pub(super) fn selections(&self) -> Vec<Vec<u64>> {
        let layers = self.selections.chunks(self.experts.max(1));
        layers.map(|l| l.iter().map(|count| count.load(Ordering::Relaxed)).collect()).collect()
    }

    fn event(
        &self,
        activity: Activity,
        task: Task,
        started: Instant,
        ended: Instant,
        bytes: u64,
        failure: Option<Box<str>>,
    ) {
        let start = self.nanoseconds(started);
        let duration = self.nanoseconds(ended).saturating_sub(start);
        self.push(Record::Event(Event { activity, task, start, duration, bytes, failure }));
    }

    fn push(&self, record: Record) {
        if self.ring.force_push(record).is_some() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Since the recorder was made. 64 bits last for 584 years.
    fn nanoseconds(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos() as u64
    }
}

/// A task that runs.
#[derive(Debug)]
pub struct Span<'a>(Option<Open<'a>>);

#[derive(Debug)]
struct Open<'a> {
    shared: &'a Shared,
    task: Task,
    /// Dropped with the rest, after the event has been recorded.
    #[expect(dead_code, reason = "its end is its drop")]
    mark: Option<Mark>,
    started: Instant,
    bytes: u64,
    failure: Option<Box<str>>,
}

impl Span<'_> {
    /// The task has moved so many bytes more.
    pub fn bytes(&mut self, bytes: u64) {
        if let Some(open) = &mut self.0 {
            open.bytes += bytes;
        }
    }

    /// The task has failed.
    pub fn fail(&mut self, reason: impl std::fmt::Display) {
        if let Some(open) = &mut self.0 {
            open.failure = Some(reason.to_string().into());
        }
    }
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        if let Some(Open { shared, task, started, bytes, failure, .. }) = &mut self.0 {
            let failure = failure.take();
            shared.event(Activity::Compute, *task, *started, Instant::now(), *bytes, failure);
        }
    }
}
