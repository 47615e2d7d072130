//! Perplexity: the exponential of the mean negative log-probability of each next token.

use tandem_memory::KvCache;

use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, LogitsFor, check_ids};

/// A sum over scored tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Perplexity {
    /// Sum of negative natural logarithms of probabilities.
    pub negative_log_likelihood: f64,
    /// Tokens scored.
    pub tokens: usize,
}

impl Perplexity {
    /// Adds another text's sum.
    pub fn add(&mut self, other: Self) {
        self.negative_log_likelihood += other.negative_log_likelihood;
        self.tokens += other.tokens;
    }

    /// The perplexity; NaN where nothing was scored.
    pub fn perplexity(&self) -> f64 {
        (self.negative_log_likelihood / self.tokens as f64).exp()
    }
}

/// Scores every token of `ids` but the first.
///
/// # Errors
/// As [`Executor::forward`], and where logits are not finite.
pub fn score(executor: &mut Executor, kv: &mut KvCache, ids: &[u32]) -> Result<Perplexity> {
    let vocab = executor.model().config().vocab_size;
    check_ids(ids, vocab)?;
    let mut sum = Perplexity::default();
    kv.clear();
    let inputs = &ids[..ids.len().saturating_sub(1)];
    for start in (0..inputs.len()).step_by(executor.batch()) {
        let end = (start + executor.batch()).min(inputs.len());
        let logits = executor.forward(&inputs[start..end], kv, LogitsFor::All, None)?;
        for (logits, &next) in logits.chunks_exact(vocab).zip(&ids[start + 1..]) {
            let log_probability = log_probability(logits, next);
            if !log_probability.is_finite() {
                return Err(RuntimeError::NoFiniteLogit);
            }
            sum.negative_log_likelihood -= log_probability;
            sum.tokens += 1;
        }
    }
    Ok(sum)
}

fn log_probability(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    f64::from(logits[id as usize] - max) - sum.ln()
}
