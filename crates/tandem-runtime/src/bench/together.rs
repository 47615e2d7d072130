//! How fast several texts are written together: a token of each in every pass, so that weights are read once for all.

use std::time::{Duration, Instant};

use tandem_memory::KvCache;

use super::{Measured, Timed, measure, prompt, random_ids};
use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, LogitsFor, Segment};

/// Texts that are ready to be written together: what comes before is in their caches.
pub struct Together {
    texts: Vec<Vec<u32>>,
    depth: usize,
}

impl Together {
    /// Fills each cache with `depth` tokens of its own, after which `tokens` are to be written.
    ///
    /// # Errors
    /// Where the tokens do not fit the caches.
    pub fn new(
        executor: &mut Executor,
        caches: &mut [KvCache],
        tokens: usize,
        depth: usize,
    ) -> Result<Self> {
        let mut texts = Vec::with_capacity(caches.len());
        for (seed, kv) in (0..).zip(caches) {
            let (tokens, context) = (depth + tokens, kv.capacity());
            if tokens > context {
                return Err(RuntimeError::PromptTooLong { tokens, context });
            }
            let mut ids = random_ids(executor.model().config().vocab_size, tokens, seed);
            kv.clear();
            prompt(executor, kv, &ids[..depth])?;
            ids.drain(..depth);
            texts.push(ids);
        }
        Ok(Self { texts, depth })
    }

    /// Writes all texts once; answers how long that took.
    ///
    /// # Errors
    /// As [`Executor::forward`].
    pub fn time(&self, executor: &mut Executor, caches: &mut [KvCache]) -> Result<Duration> {
        caches.iter_mut().for_each(|kv| kv.truncate(self.depth));
        let started = Instant::now();
        for step in 0..self.texts[0].len() {
            let parts = self.texts.iter().zip(&mut *caches);
            let mut segments: Vec<_> = parts
                .map(|(ids, kv)| Segment { ids: &ids[step..=step], kv, wanted: LogitsFor::Last })
                .collect();
            executor.forward_segments(&mut segments, &[])?;
        }
        Ok(started.elapsed())
    }
}

/// Writes `tokens` of as many texts as there are caches, each after `depth` tokens of its own, `repetitions` times. Rates
/// are those of all texts together.
///
/// # Errors
/// Where the tokens do not fit the caches.
///
/// # Panics
/// When there are no caches, or more than a batch has tokens.
pub fn run_together(
    executor: &mut Executor,
    caches: &mut [KvCache],
    tokens: usize,
    depth: usize,
    repetitions: usize,
) -> Result<Measured> {
    let together = Together::new(executor, caches, tokens, depth)?;
    let count = caches.len();
    let mut run = |executor: &mut Executor| together.time(executor, caches);
    run(executor)?;
    let threads = executor.threads().for_tokens(count);
    measure(executor, Timed { threads, tokens: tokens * count, repetitions }, run)
}
