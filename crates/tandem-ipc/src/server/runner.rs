//! Work packets: the most urgent first, one at a time between two rounds of the engine.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::service::Service;
use super::works::{News, Report};
use crate::packet::{Prepared, answer};
use crate::protocol::{Answer, Code, Fault, WorkPacket};
use crate::wake::Outlet;

/// Packets that wait, at most.
const MAX_PACKETS: usize = 256;
/// Bytes of their tensors, at most.
const MAX_BYTES: usize = 256 << 20;

/// A packet, and the request that it came with.
pub(super) struct Parcel {
    pub(super) work: u64,
    pub(super) packet: WorkPacket,
    pub(super) tensor: Option<Vec<u8>>,
}

/// A thread that has packets run.
pub(super) struct Runner {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BinaryHeap<Waiting>,
    bytes: usize,
    closed: bool,
}

/// Ordered by priority, and then first come, first served.
struct Waiting(Parcel);

impl Waiting {
    fn key(&self) -> (i64, Reverse<u64>) {
        (self.0.packet.priority, Reverse(self.0.work))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Runner {
    pub(super) fn start(service: Arc<Service>, outlet: Outlet<Report>) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let shared = Arc::clone(&queue);
        let thread =
            std::thread::Builder::new().name("tandem-packets".into()).spawn(move || {
                while let Some(Parcel { work, packet, tensor }) = shared.next() {
                    let answer = run(&service, &packet, tensor).unwrap_or_else(|fault| {
                        Answer::error(&fault).with("packet_id", &packet.packet_id)
                    });
                    outlet.send(Report::Of { work, news: News::Done(Box::new(answer)) });
                }
            })?;
        Ok(Self { queue, thread: Some(thread) })
    }

    /// Takes a packet, where not too many wait.
    pub(super) fn take(&self, parcel: Parcel) -> Result<(), Fault> {
        let mut state = self.queue.state();
        let bytes = state.bytes + parcel.tensor.as_ref().map_or(0, Vec::len);
        if state.waiting.len() >= MAX_PACKETS || bytes > MAX_BYTES {
            let waiting = state.waiting.len();
            let message = format!("{waiting} work packets wait already: try again later");
            return Err(Fault { code: Code::QueueFull, message });
        }
        state.bytes = bytes;
        state.waiting.push(Waiting(parcel));
        self.queue.changed.notify_one();
        Ok(())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // If it panicked, that has been printed.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most urgent packet; waits for one, and answers `None` when there will be no more.
    fn next(&self) -> Option<Parcel> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if let Some(Waiting(parcel)) = state.waiting.pop() {
                state.bytes -= parcel.tensor.as_ref().map_or(0, Vec::len);
                return Some(parcel);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn run(service: &Service, packet: &WorkPacket, tensor: Option<Vec<u8>>) -> Result<Answer, Fault> {
    let prepared = Prepared::new(packet, tensor, &service.model.config)?;
    let (shape, source) = (prepared.output_shape().to_vec(), prepared.source());
    let kv_type = service.engine.options().kv_type;
    let result = service
        .engine
        .run_on_executor(move |executor| prepared.run(executor, kv_type))
        .and_then(|result| result)
        .map_err(|error| Fault::from(&error))?;
    Ok(answer(packet, source, shape, result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_most_urgent_first_and_no_more_than_may_wait() {
        let queue = Arc::new(Queue::default());
        let runner = Runner { queue: Arc::clone(&queue), thread: None };
        let take = |work, priority: i64| {
            let packet = serde_json::from_value(json!({
                "packet_id": work, "operation": "lm_head", "input_shape": [1, 8], "priority": priority,
            }))
            .unwrap();
            runner.take(Parcel { work, packet, tensor: Some(vec![0; 100]) })
        };
        for (work, priority) in [(1, 0), (2, 5), (3, -1), (4, 5), (5, 0)] {
            take(work, priority).unwrap();
        }
        let order: Vec<u64> = (0..5).map(|_| queue.next().unwrap().work).collect();
        assert_eq!(order, [2, 4, 1, 5, 3]);
        assert_eq!(queue.state().bytes, 0);
        (0..MAX_PACKETS as u64).for_each(|work| take(work, 0).unwrap());
        assert_eq!(
            take(999, 9).unwrap_err().message,
            "256 work packets wait already: try again later"
        );
        drop(runner);
        assert!(queue.next().is_none());
    }
}
