//! Texts that wait for their turn: first come, first served.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::EngineLoad;
use super::handle::Job;
use crate::error::{Result, RuntimeError};

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: usize,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a text behind the others that wait, of which there may be so many with it.
    pub(super) fn push(&self, job: Job, most: usize) -> Result<()> {
        let mut state = self.state();
        if state.closed {
            return Err(RuntimeError::EngineStopped);
        }
        let waiting = state.waiting();
        if waiting >= most {
            return Err(RuntimeError::QueueFull { waiting, running: state.running });
        }
        state.waiting.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// The texts that are to begin, where `running` are not at their end and `most` may be at a time, up to the first that
    /// does not `fit` beside the others. Waits for one where there is nothing else to do; answers `None` when the queue is
    /// closed.
    pub(super) fn take(
        &self,
        running: usize,
        most: usize,
        fits: &mut dyn FnMut(&Job) -> bool,
    ) -> Option<Vec<Job>> {
        let mut state = self.state();
        state.running = running;
        while running == 0 && state.waiting.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        // Those that were cancelled take no place.
        let (mut begin, mut wait) = (Vec::new(), VecDeque::new());
        for job in std::mem::take(&mut state.waiting) {
            let cancelled = job.reply.is_cancelled();
            // Nobody overtakes one that must wait.
            let turn = || wait.is_empty() && state.running < most;
            if cancelled || (turn() && fits(&job)) {
                state.running += usize::from(!cancelled);
                begin.push(job);
            } else {
                wait.push_back(job);
            }
        }
        state.waiting = wait;
        Some(begin)
    }

    /// Takes no more texts, and drops those that wait.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
        self.changed.notify_one();
    }

    pub(super) fn load(&self) -> EngineLoad {
        let state = self.state();
        EngineLoad { running: state.running, waiting: state.waiting() }
    }
}

impl State {
    /// How many texts wait that have not been cancelled.
    fn waiting(&self) -> usize {
        self.waiting.iter().filter(|job| !job.reply.is_cancelled()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::handle::{Handle, channel};
    use crate::sampling::SamplingParams;
    use crate::text::Request;

    fn job(number: u32) -> (Handle, Job) {
        let request = Request {
            max_tokens: None,
            sampling: SamplingParams::GREEDY,
            stop_ids: vec![],
            stop_strings: vec![],
            lookup: 0,
            continues_prompt: false,
        };
        channel(vec![number], request)
    }

    fn numbers(jobs: Option<Vec<Job>>) -> Vec<u32> {
        jobs.unwrap().iter().map(|job| job.prompt[0]).collect()
    }

    #[test]
    fn first_come_first_served_and_no_more_than_may_wait() {
        let queue = Queue::default();
        let (handles, jobs): (Vec<_>, Vec<_>) = (0..6).map(job).unzip();
        let mut jobs = jobs.into_iter();
        let mut push = || queue.push(jobs.next().unwrap(), 3).map_err(|error| error.to_string());
        assert_eq!([push(), push(), push()], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(numbers(queue.take(4, 5, &mut |_| true)), [0]);
        assert_eq!(push(), Ok(()));
        let full = "the queue is full: 3 texts wait behind 5 that are written: try again later";
        assert_eq!(push(), Err(full.to_owned()));
        // A place that nobody wants any more is free.
        handles[2].cancel();
        assert_eq!(queue.load(), EngineLoad { running: 5, waiting: 2 });
        assert_eq!(push(), Ok(()));
        assert_eq!(numbers(queue.take(4, 5, &mut |_| true)), [1, 2]);
        // One that does not fit keeps those behind it waiting.
        assert!(numbers(queue.take(1, 5, &mut |job| job.prompt[0] != 3)).is_empty());
        assert_eq!(numbers(queue.take(0, 5, &mut |_| true)), [3, 5]);
        queue.close();
        assert!(queue.take(0, 5, &mut |_| true).is_none());
        let late = queue.push(job(9).1, 3).unwrap_err();
        assert_eq!(late.to_string(), "the engine has stopped");
    }
}
