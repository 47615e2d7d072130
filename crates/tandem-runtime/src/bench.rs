//! How fast a model runs: the tests that llama-bench has, with the same names.
//!
//! `pp512` is a prompt of 512 tokens, `tg128` are 128 tokens one by one, `@ d1024` either of them after 1024 tokens that
//! are in the cache already. Ids are random but the same in every run; what they are makes no difference to a dense
//! weight, and spreads tokens over all experts. One untimed run warms up.

mod foreign;
mod together;

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tandem_gpu::Gpu;
use tandem_memory::KvCache;

use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, LogitsFor};
use crate::lookup::Lookup;
pub use foreign::ForeignPrepared;
pub use together::{Together, run_together};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A prompt of so many tokens.
    Prompt(usize),
    /// So many tokens one by one.
    Generate(usize),
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// What is timed.
    pub work: Work,
    /// Tokens in the cache before.
    pub depth: usize,
}

impl Test {
    /// The name, as llama-bench has it.
    pub fn name(&self) -> String {
        let work = match self.work {
            Work::Prompt(n) => format!("pp{n}"),
            Work::Generate(n) => format!("tg{n}"),
        };
        if self.depth == 0 { work } else { format!("{work} @ d{}", self.depth) }
    }

    /// Tokens that are timed.
    pub fn tokens(&self) -> usize {
        match self.work {
            Work::Prompt(n) | Work::Generate(n) => n,
        }
    }

    /// Tokens that a timed one sees, itself included, in the mean over all of them.
    pub fn mean_context(&self) -> f64 {
        self.depth as f64 + (self.tokens() as f64 + 1.0) / 2.0
    }
}

/// A test that is ready to be timed: what comes before is in the cache, and one untimed run has warmed up.
pub struct Prepared {
    test: Test,
    ids: Vec<u32>,
}

impl Prepared {
    /// Fills `kv` with what comes before, and warms up.
    ///
    /// # Errors
    /// Where the tokens do not fit `kv`.
    pub fn new(executor: &mut Executor, kv: &mut KvCache, test: Test) -> Result<Self> {
        let tokens = test.depth + test.tokens();
        if tokens > kv.capacity() {
            return Err(RuntimeError::PromptTooLong { tokens, context: kv.capacity() });
        }
        let mut ids = random_ids(executor.model().config().vocab_size, tokens, 0);
        kv.clear();
        prompt(executor, kv, &ids[..test.depth])?;
        ids.drain(..test.depth);
        let prepared = Self { test, ids };
        prepared.time(executor, kv)?;
        Ok(prepared)
    }

    /// Runs the test once with what it was prepared with; answers how long that took.
    ///
    /// # Errors
    /// As [`Executor::forward`].
    pub fn time(&self, executor: &mut Executor, kv: &mut KvCache) -> Result<Duration> {
        kv.truncate(self.test.depth);
        let started = Instant::now();
        match self.test.work {
            Work::Prompt(_) => prompt(executor, kv, &self.ids)?,
            Work::Generate(_) => {
                for id in &self.ids {
                    executor.forward(&[*id], kv, LogitsFor::Last, None)?;
                }
            }
        }
        Ok(started.elapsed())
    }
}

/// What the machine can do at most, with as many threads as a test has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// Bytes per second that are read from memory: [`Executor::read_bandwidth`].
    pub read_bandwidth: f64,
    /// 8-bit operations per second: [`Executor::int8_peak`].
    pub int8_peak: f64,
}

impl Ceiling {
    fn measure(executor: &Executor, threads: usize) -> Result<Self> {
        let read_bandwidth = executor.read_bandwidth(threads)?;
        Ok(Self { read_bandwidth, int8_peak: executor.int8_peak(threads) })
    }

    fn midpoint(self, other: Self) -> Self {
        Self {
            read_bandwidth: f64::midpoint(self.read_bandwidth, other.read_bandwidth),
            int8_peak: f64::midpoint(self.int8_peak, other.int8_peak),
        }
    }
}

/// One repetition of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repetition {
    /// Tokens per second.
    pub rate: f64,
    /// What the machine could do right before and right after, in the mean: where others use it as well, that changes
    /// from second to second.
    pub ceiling: Ceiling,
}

/// What a test showed.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Threads that computed.
    pub threads: usize,
    /// One after the other.
    pub repetitions: Vec<Repetition>,
    /// How often a token made the team's members wait for each other.
    pub barriers_per_token: f64,
    /// How often a token made the CPU wait for the GPU.
    pub waits_per_token: f64,
}

impl Measured {
    /// The middle of what something is in each repetition.
    pub fn median(&self, of: impl Fn(&Repetition) -> f64) -> f64 {
        median(&self.repetitions.iter().map(of).collect::<Vec<f64>>())
    }
}

/// Runs one test `repetitions` times, by an executor whose team nobody else uses meanwhile. The executor's profile is
/// then that of these repetitions.
///
/// # Errors
/// Where the tokens do not fit `kv`, or there is no memory to measure with.
pub fn run(
    executor: &mut Executor,
    kv: &mut KvCache,
    test: Test,
    repetitions: usize,
) -> Result<Measured> {
    let threads = executor.threads().for_tokens(match test.work {
        Work::Prompt(tokens) => tokens.min(executor.batch()),
        Work::Generate(_) => 1,
    });
    let prepared = Prepared::new(executor, kv, test)?;
    let work = Timed { threads, tokens: test.tokens(), repetitions };
    measure(executor, work, |executor| prepared.time(executor, kv))
}

/// What is timed.
#[derive(Clone, Copy)]
struct Timed {
    /// Threads that compute it.
    threads: usize,
    /// Tokens of one repetition.
    tokens: usize,
    repetitions: usize,
}

/// Times a run again and again, and what the machine can do in between.
fn measure(
    executor: &mut Executor,
    Timed { threads, tokens, repetitions }: Timed,
    mut run: impl FnMut(&mut Executor) -> Result<Duration>,
) -> Result<Measured> {
    executor.profile().clear();
    let (mut rounds, mut waits) = (0, 0);
    let waited = |executor: &Executor| executor.gpu().map_or(0, Gpu::waits);
    let mut before = Ceiling::measure(executor, threads)?;
    let repetitions = (0..repetitions)
        .map(|_| {
            let (first_round, first_wait) = (executor.team().rounds(), waited(executor));
            let rate = tokens as f64 / run(executor)?.as_secs_f64();
            rounds += executor.team().rounds() - first_round;
            // A GPU that was put aside meanwhile takes its count with it.
            waits += waited(executor).saturating_sub(first_wait);
            let after = Ceiling::measure(executor, threads)?;
            let ceiling = std::mem::replace(&mut before, after).midpoint(after);
            Ok(Repetition { rate, ceiling })
        })
        .collect::<Result<Vec<_>>>()?;
    let tokens = (tokens * repetitions.len()) as f64;
    Ok(Measured {
        threads,
        repetitions,
        barriers_per_token: rounds as f64 / tokens,
        waits_per_token: waits as f64 / tokens,
    })
}

/// What a replayed text took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Replay {
    /// Tokens per second, those of the prompt left out.
    pub rate: f64,
    /// Tokens that were guessed.
    pub drafted: usize,
    /// Guesses that were right.
    pub accepted: usize,
}

/// Reads the first `prompt` of `ids`, and then goes through the others as if the model had written them: guessing up to
/// `lookup` tokens ahead, and verifying. It tells what guessing is worth on a text that this model would not write.
///
/// # Errors
/// Where the tokens do not fit `kv`.
///
/// # Panics
/// When there is nothing after the prompt, or no prompt.
pub fn replay(
    executor: &mut Executor,
    kv: &mut KvCache,
    ids: &[u32],
    prompt: usize,
    lookup: usize,
) -> Result<Replay> {
    assert!((1..ids.len()).contains(&prompt), "a prompt of {prompt} of {} tokens", ids.len());
    kv.clear();
    self::prompt(executor, kv, &ids[..prompt])?;
    let (mut drafted, mut accepted) = (0, 0);
    let mut lookup = Lookup::new(lookup);
    // The newest token is not in the cache yet.
    let mut newest = prompt;
    let started = Instant::now();
    while newest < ids.len() {
        let room = (ids.len() - newest - 1).min(executor.batch() - 1);
        let guesses = lookup.draft(&ids[..newest], ids[newest], room);
        let batch = [&ids[newest..=newest], &guesses].concat();
        executor.forward_top(&batch, kv, LogitsFor::All, 1, &|_| true)?;
        let right = guesses.iter().zip(&ids[newest + 1..]).take_while(|(a, b)| a == b).count();
        lookup.learn(guesses.len(), right);
        (drafted, accepted) = (drafted + guesses.len(), accepted + right);
        newest += 1 + right;
        kv.truncate(newest);
    }
    let rate = (ids.len() - prompt) as f64 / started.elapsed().as_secs_f64();
    Ok(Replay { rate, drafted, accepted })
}

/// The same ids for the same seed.
fn random_ids(vocab_size: usize, count: usize, seed: u64) -> Vec<u32> {
    let vocab = u32::try_from(vocab_size).unwrap_or(u32::MAX);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0..vocab)).collect()
}

/// All batches of a prompt, with logits of the last token.
fn prompt(executor: &mut Executor, kv: &mut KvCache, ids: &[u32]) -> Result<()> {
    let mut rest = ids;
    while !rest.is_empty() {
        let batch;
        (batch, rest) = rest.split_at(executor.pass_limit().min(rest.len()));
        let wanted = if rest.is_empty() { LogitsFor::Last } else { LogitsFor::None };
        executor.forward(batch, kv, wanted, None)?;
    }
    Ok(())
}

/// The middle of some rates; NaN of none.
pub fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_llama_bench() {
        assert_eq!(Test { work: Work::Prompt(512), depth: 0 }.name(), "pp512");
        assert_eq!(Test { work: Work::Generate(32), depth: 2048 }.name(), "tg32 @ d2048");
    }

    #[test]
    fn the_mean_context_is_that_of_all_tokens() {
        // The first sees 6 tokens, the last 8.
        assert_eq!(Test { work: Work::Generate(3), depth: 5 }.mean_context(), 7.0);
    }

    #[test]
    fn the_median_ignores_outliers() {
        assert_eq!(median(&[1.0, 900.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 2.0]), 3.0);
        assert!(median(&[]).is_nan());
    }
}
