//! The bandwidth token: so many heavy operations at a time, each with a permit.
//!
//! Two devices that read from one memory slow each other down when both do so at once. Operations that read much
//! ([`HeavyOperations`](super::HeavyOperations)) therefore hold a permit while they run.
//!
//! Who waits is served first come, first served within a [`Priority`], decode before prefill. No prefill starves: while
//! one waits, at most [`TokenParams::decode_run`] permits in a row go to decode; then the prefill that has waited
//! longest gets one. A permit that becomes free is handed to the next in line at once, so nobody who comes later can
//! take it first, and who waits sleeps until it is their turn.
//!
//! With more than one permit an operation may hold several, but must not wait for a second one while it holds the first:
//! all of them could be held by such.

mod gate;
mod metrics;
mod queue;
#[cfg(test)]
mod tests;

mod sync {
    pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
}

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::telemetry::{Activity, Recorder, Task};
use gate::{Gate, Place};
use metrics::Log;
pub use metrics::{Holder, TokenMetrics};
pub use queue::Priority;

/// How a [`BandwidthToken`] shares itself out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenParams {
    /// Heavy operations that may run at the same time.
    pub permits: NonZeroUsize,
    /// Permits in a row that may go to decode while a prefill waits.
    pub decode_run: usize,
}

impl Default for TokenParams {
    /// One permit, up to 8 of them to decode while a prefill waits.
    fn default() -> Self {
        Self { permits: NonZeroUsize::MIN, decode_run: 8 }
    }
}

/// A fair counting semaphore with priorities: see the module's text. Clones are the same token.
#[derive(Clone, Debug)]
pub struct BandwidthToken(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    permits: usize,
    log: Mutex<Log>,
    recorder: Recorder,
}

impl BandwidthToken {
    /// A token, whose waits and holds `recorder` records.
    pub fn new(params: TokenParams, recorder: Recorder) -> Self {
        let permits = params.permits.get();
        let gate = Arc::new(Gate::new(permits, params.decode_run));
        Self(Arc::new(Shared { gate, permits, log: Mutex::default(), recorder }))
    }

    /// A permit for `task`, waited for as long as it takes. It ends where it is dropped, in any thread.
    pub fn acquire(&self, task: Task, priority: Priority) -> Permit {
        let ticket = self.line_up(task, priority);
        ticket.place.wait(None);
        ticket.into_permit()
    }

    /// As [`Self::acquire`], but waits no longer than `limit`.
    ///
    /// # Errors
    /// When there was no permit in that time; the task has then left the line.
    pub fn acquire_within(
        &self,
        task: Task,
        priority: Priority,
        limit: Duration,
    ) -> Result<Permit, TokenTimeout> {
        self.line_up(task, priority).wait(limit)
    }

    /// A place in the line, for who has something else to do meanwhile. Dropping it leaves the line.
    pub fn line_up(&self, task: Task, priority: Priority) -> Ticket {
        let since = Instant::now();
        let place = Place::new(&self.0.gate, priority);
        Ticket { shared: Arc::clone(&self.0), place, task, priority, since }
    }

    /// Who holds permits and who waits now, and what has been so far.
    pub fn metrics(&self) -> TokenMetrics {
        let waiting = self.0.gate.waiting();
        self.0.log().metrics(self.0.permits, waiting)
    }
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        // A panic between two additions costs a count at most.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line for a permit.
#[derive(Debug)]
#[must_use = "dropping a ticket leaves the line"]
pub struct Ticket {
    shared: Arc<Shared>,
    place: Place,
    task: Task,
    priority: Priority,
    since: Instant,
}

impl Ticket {
    /// Whether a permit is there, so that waiting takes no time.
    pub fn is_ready(&self) -> bool {
        self.place.is_granted()
    }

    /// The permit, waited for no longer than `limit`.
    ///
    /// # Errors
    /// When there was no permit in that time; the task has then left the line.
    pub fn wait(self, limit: Duration) -> Result<Permit, TokenTimeout> {
        // A limit beyond the clock's range is none.
        if self.place.wait(Instant::now().checked_add(limit)) {
            return Ok(self.into_permit());
        }
        let mut log = self.shared.log();
        log.timed_out += 1;
        let holders = log.holders().map(|(task, _)| task.operation.name()).collect();
        drop(log);
        Err(TokenTimeout { operation: self.task.operation.name(), limit, holders })
    }

    /// The place, which has been granted, as a permit.
    fn into_permit(self) -> Permit {
        let Self { shared, place, task, priority, since } = self;
        let now = Instant::now();
        shared.log().taken(place.id(), task, priority, now, now - since);
        shared.recorder.record_activity(Activity::TokenWait, task, since, now, 0);
        Permit { shared, place, task, since: now, bytes: 0 }
    }
}

/// The right to run one heavy operation.
#[derive(Debug)]
#[must_use = "a permit ends where it is dropped"]
pub struct Permit {
    shared: Arc<Shared>,
    /// Dropped after the log has been written: who comes next finds it written.
    place: Place,
    task: Task,
    since: Instant,
    bytes: u64,
}

impl Permit {
    /// So many bytes more have been read and written under this permit.
    pub const fn bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        self.shared.log().given_back(self.place.id(), now - self.since, self.bytes);
        let (task, since, bytes) = (self.task, self.since, self.bytes);
        self.shared.recorder.record_activity(Activity::TokenHold, task, since, now, bytes);
    }
}

/// No permit in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "bandwidth token: {operation} got no permit in {limit:?}; held by {}",
    if holders.is_empty() { "none any more".to_owned() } else { holders.join(", ") }
)]
pub struct TokenTimeout {
    /// The operation that waited.
    pub operation: &'static str,
    /// How long it waited.
    pub limit: Duration,
    /// The operations that held permits then.
    pub holders: Vec<&'static str>,
}
