//! How fast several texts are written together: a token of each in every pass, so that weights are read once for all.

use std::time::{Duration, Instant};

use tandem_memory::KvCache;

use super::{Measured, Timed, measure, prompt, random_ids};
use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, LogitsFor, Segment};

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
    let mut texts = Vec::with_capacity(caches.len());
    for (seed, kv) in (0..).zip(&mut *caches) {
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
    let mut run = |executor: &mut Executor| time(executor, caches, &texts, depth);
    run(executor)?;
    let threads = executor.threads().for_tokens(texts.len());
    measure(executor, Timed { threads, tokens: tokens * texts.len(), repetitions }, run)
}

/// Writes all texts once.
fn time(
    executor: &mut Executor,
    caches: &mut [KvCache],
    texts: &[Vec<u32>],
    depth: usize,
) -> Result<Duration> {
    caches.iter_mut().for_each(|kv| kv.truncate(depth));
    let started = Instant::now();
    for step in 0..texts[0].len() {
        let parts = texts.iter().zip(&mut *caches);
        let mut segments: Vec<_> = parts
            .map(|(ids, kv)| Segment { ids: &ids[step..=step], kv, wanted: LogitsFor::Last })
            .collect();
        executor.forward_segments(&mut segments, &[])?;
    }
    Ok(started.elapsed())
}
