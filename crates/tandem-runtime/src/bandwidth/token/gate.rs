//! Waiting for a permit: [`Queue`] behind a mutex, and a condition variable for each who waits, so that nobody is woken
//! in vain.

use std::time::{Duration, Instant};

use super::queue::{Priority, Queue};
// The standard library's, or in the test of all interleavings `loom`'s.
use super::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Lets so many in at a time.
#[derive(Debug)]
pub(super) struct Gate(Mutex<Queue<Arc<Condvar>>>);

impl Gate {
    pub(super) fn new(permits: usize, decode_run: usize) -> Self {
        Self(Mutex::new(Queue::new(permits, decode_run)))
    }

    /// How many wait, by priority.
    pub(super) fn waiting(&self) -> [usize; 2] {
        self.queue().waiting()
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Arc<Condvar>>> {
        // No code of others runs under the lock: the queue is whole whoever has panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line, then a permit. Dropping it gives up either.
#[derive(Debug)]
pub(super) struct Place {
    gate: Arc<Gate>,
    id: u64,
    priority: Priority,
    granted: Arc<Condvar>,
}

impl Place {
    /// Lines up.
    pub(super) fn new(gate: &Arc<Gate>, priority: Priority) -> Self {
        let granted = Arc::new(Condvar::new());
        let id = gate.queue().join(priority, Arc::clone(&granted));
        Self { gate: Arc::clone(gate), id, priority, granted }
    }

    /// A number that no other place of this gate has.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is a permit now.
    pub(super) fn is_granted(&self) -> bool {
        self.gate.queue().is_granted(self.id, self.priority)
    }

    /// Sleeps until it is a permit, but not beyond the deadline; answers whether it is one.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut queue = self.gate.queue();
        while !queue.is_granted(self.id, self.priority) {
            let woken = match deadline.map(|end| end.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return false,
                Some(left) => {
                    let woken = self.granted.wait_timeout(queue, left);
                    woken.map(|(queue, _)| queue).map_err(|poisoned| poisoned.into_inner().0)
                }
                None => self.granted.wait(queue).map_err(PoisonError::into_inner),
            };
            queue = woken.unwrap_or_else(|queue| queue);
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = self.gate.queue().leave(self.id, self.priority);
        if let Some(next) = next {
            next.notify_one();
        }
    }
}
