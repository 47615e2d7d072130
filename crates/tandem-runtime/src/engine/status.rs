//! What the engine's thread tells about itself.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::executor::{Degradation, Executor};

/// The moving average is over so much time.
const WINDOW: Duration = Duration::from_secs(5);

/// Tokens that an engine has read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Throughput {
    /// Tokens that all texts together got per second, over the last five seconds.
    pub tokens_per_second: f64,
    /// Tokens of prompts that went through the model per second, over the same time.
    pub prompt_tokens_per_second: f64,
    /// Tokens written since the start.
    pub generated_tokens: u64,
    /// Tokens of prompts that went through the model since the start.
    pub prompt_tokens: u64,
    /// Rounds since the start.
    pub rounds: u64,
}

/// Written by the engine's thread, read by all.
#[derive(Default)]
pub(super) struct Status(Mutex<State>);

#[derive(Default)]
struct State {
    /// Tokens so far.
    read: u64,
    written: u64,
    rounds: u64,
    /// As they were at the ends of the newest rounds.
    recent: VecDeque<(Instant, u64, u64)>,
    gpu_failure: Option<String>,
    degradations: Vec<Degradation>,
}

impl Status {
    fn state(&self) -> MutexGuard<'_, State> {
        // A count at most is wrong.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many tokens of prompts go through the model.
    pub(super) fn read(&self, tokens: usize) {
        self.state().read += tokens as u64;
    }

    /// So many tokens have been written.
    pub(super) fn written(&self, tokens: usize) {
        self.state().written += tokens as u64;
    }

    /// A round has ended.
    pub(super) fn look(&self, executor: &Executor) {
        let mut state = self.state();
        let now = Instant::now();
        state.rounds += 1;
        let counts = (now, state.read, state.written);
        state.recent.push_back(counts);
        // One that is older than the window stays: the window begins there.
        while state.recent.get(1).is_some_and(|(at, ..)| now - *at > WINDOW) {
            state.recent.pop_front();
        }
        if state.degradations.len() < executor.degradations().len() {
            state.degradations = executor.degradations().to_vec();
        }
        if state.gpu_failure.is_none() {
            state.gpu_failure = executor.gpu_failure().map(ToString::to_string);
        }
    }

    pub(super) fn throughput(&self) -> Throughput {
        let state = self.state();
        let now = Instant::now();
        let within = |&&(at, ..): &&(Instant, u64, u64)| now - at <= WINDOW;
        // What was there when the window began, or when the first round ended.
        let from = state.recent.iter().rev().find(|(at, ..)| now - *at > WINDOW);
        let from = from.or_else(|| state.recent.iter().find(within));
        let rate = |since: u64, now_count: u64, seconds: f64| {
            if seconds > 0.0 { (now_count - since) as f64 / seconds } else { 0.0 }
        };
        let (prompt, tokens) = from.map_or((0.0, 0.0), |&(at, read, written)| {
            let seconds = (now - at).min(WINDOW).as_secs_f64();
            (rate(read, state.read, seconds), rate(written, state.written, seconds))
        });
        Throughput {
            tokens_per_second: tokens,
            prompt_tokens_per_second: prompt,
            generated_tokens: state.written,
            prompt_tokens: state.read,
            rounds: state.rounds,
        }
    }

    /// What was changed because the GPU failed.
    pub(super) fn degradations(&self) -> Vec<Degradation> {
        self.state().degradations.clone()
    }

    /// Why the GPU was put aside, if it was.
    pub(super) fn gpu_failure(&self) -> Option<String> {
        self.state().gpu_failure.clone()
    }
}
