//! The same tests with a model that another library computes.

use std::time::{Duration, Instant};

use super::{Test, Work, random_ids};
use crate::error::{Result, RuntimeError};
use crate::executor::LogitsFor;
use crate::text::ForeignModel;

/// As [`Prepared`](super::Prepared).
pub struct ForeignPrepared {
    test: Test,
    ids: Vec<u32>,
}

impl ForeignPrepared {
    /// Fills the cache with what comes before, and warms up.
    ///
    /// # Errors
    /// Where the tokens do not fit it, and what the library says.
    pub fn new(model: &mut impl ForeignModel, test: Test) -> Result<Self> {
        let (tokens, context) = (test.depth + test.tokens(), model.capacity());
        if tokens > context {
            return Err(RuntimeError::PromptTooLong { tokens, context });
        }
        let mut ids = random_ids(model.vocab_size(), tokens, 0);
        model.truncate(0);
        prompt(model, &ids[..test.depth])?;
        ids.drain(..test.depth);
        let prepared = Self { test, ids };
        prepared.time(model)?;
        Ok(prepared)
    }

    /// Runs the test once; answers how long that took.
    ///
    /// # Errors
    /// What the library says.
    pub fn time(&self, model: &mut impl ForeignModel) -> Result<Duration> {
        model.truncate(self.test.depth);
        let started = Instant::now();
        match self.test.work {
            Work::Prompt(_) => prompt(model, &self.ids)?,
            Work::Generate(_) => {
                for id in &self.ids {
                    model.forward(&[*id], LogitsFor::Last).map_err(RuntimeError::Foreign)?;
                }
            }
        }
        Ok(started.elapsed())
    }
}

fn prompt(model: &mut impl ForeignModel, ids: &[u32]) -> Result<()> {
    let batches = ids.chunks(model.batch());
    let last = batches.len();
    for (n, ids) in batches.enumerate() {
        let wanted = if n + 1 == last { LogitsFor::Last } else { LogitsFor::None };
        model.forward(ids, wanted).map_err(RuntimeError::Foreign)?;
    }
    Ok(())
}
