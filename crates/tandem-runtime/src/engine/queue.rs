//! What waits for the engine's thread: texts for their turn, first come, first served, and tasks for the next moment
//! between two rounds.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::EngineLoad;
use super::handle::Job;
use crate::error::{Result, RuntimeError};
use crate::executor::Executor;
use crate::telemetry::Recorder;

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    recorder: Recorder,
}

/// What is done with the executor between two rounds.
pub(super) type Task = Box<dyn FnOnce(&mut Executor) + Send>;

/// What comes before a round.
#[derive(Default)]
pub(super) struct Due {
    pub(super) tasks: Vec<Task>,
    /// Texts that are to begin.
    pub(super) begin: Vec<Job>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    tasks: Vec<Task>,
    running: usize,
    doors: Doors,
}

/// Who may come, and who may stay.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Doors {
    #[default]
    Open,
    /// Nobody may come; those that run may stay to their end.
    Closing,
    Closed,
}

impl Queue {
    /// One whose depth is recorded.
    pub(super) fn new(recorder: Recorder) -> Self {
        Self { recorder, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a text behind the others that wait, of which there may be so many with it.
    pub(super) fn push(&self, job: Job, most: usize) -> Result<()> {
        let mut state = self.state();
        if state.doors != Doors::Open {
            return Err(RuntimeError::EngineStopped);
        }
        let waiting = state.waiting();
        if waiting >= most {
            return Err(RuntimeError::QueueFull { waiting, running: state.running });
        }
        state.waiting.push_back(job);
        self.recorder.queue_depth(waiting + 1);
        self.changed.notify_one();
        Ok(())
    }

    /// Has something done between two rounds, after what was asked for before.
    pub(super) fn push_task(&self, task: Task) -> Result<()> {
        let mut state = self.state();
        if state.doors == Doors::Closed {
            return Err(RuntimeError::EngineStopped);
        }
        state.tasks.push(task);
        self.changed.notify_one();
        Ok(())
    }

    /// What is due before the next round, where `running` texts are not at their end and `most` may be at a time: of those
    /// that are to begin, up to the first that does not `fit` beside the others. Waits for something where there is nothing
    /// else to do; answers `None` when the queue is closed.
    pub(super) fn take(
        &self,
        running: usize,
        most: usize,
        fits: &mut dyn FnMut(&Job) -> bool,
    ) -> Option<Due> {
        let mut state = self.state();
        state.running = running;
        while running == 0 && state.is_idle() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let over = state.doors == Doors::Closing && running == 0 && state.tasks.is_empty();
        if state.doors == Doors::Closed || over {
            return None;
        }
        let tasks = std::mem::take(&mut state.tasks);
        let depth = state.waiting.len();
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
        if state.waiting.len() != depth {
            self.recorder.queue_depth(state.waiting());
        }
        Some(Due { tasks, begin })
    }

    /// Takes no more texts, and drops those that wait; those that run may go on to their end where that is wanted.
    pub(super) fn close(&self, finish_running: bool) {
        let mut state = self.state();
        let doors = if finish_running { Doors::Closing } else { Doors::Closed };
        state.doors = state.doors.max(doors);
        state.waiting.clear();
        if !finish_running {
            state.tasks.clear();
        }
        self.recorder.queue_depth(0);
        self.changed.notify_one();
    }

    pub(super) fn is_open(&self) -> bool {
        self.state().doors == Doors::Open
    }

    pub(super) fn load(&self) -> EngineLoad {
        let state = self.state();
        EngineLoad { running: state.running, waiting: state.waiting() }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.tasks.is_empty() && self.doors == Doors::Open
    }

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
        let request = Request::new(SamplingParams::GREEDY, vec![]);
        channel(vec![number], request)
    }

    fn numbers(due: Option<Due>) -> Vec<u32> {
        due.unwrap().begin.iter().map(|job| job.prompt[0]).collect()
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
        queue.close(false);
        assert!(queue.take(0, 5, &mut |_| true).is_none());
        let late = queue.push(job(9).1, 3).unwrap_err();
        assert_eq!(late.to_string(), "the engine has stopped");
    }
}
