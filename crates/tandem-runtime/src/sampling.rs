//! From logits to the next token.
//!
//! The order of steps, each on what the one before leaves:
//!
//! 1. ids without a token (Phi-tiny-MoE has 53 of them) and logits that are not finite are left out;
//! 2. ids that the [`Constraint`] does not allow are left out;
//! 3. `logit_bias` is added;
//! 4. repetition penalty (over the prompt and the answer), then frequency and presence penalty (over the answer alone);
//! 5. temperature (0 is greedy: the largest logit, and nothing of what follows), top-k, top-p, min-p.
//!
//! The last two are those of HF `transformers`, in its order; frequency and presence penalty are OpenAI's formula. Log
//! probabilities ([`TokenLogprobs`]) are of the model's own logits after step 1.

mod constraint;
mod form;
mod logprobs;
mod params;

use std::collections::{HashMap, HashSet};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::RuntimeError;
pub use constraint::Constraint;
pub(crate) use constraint::allows;
pub use form::{AnswerForm, Tool, ToolCalls};
pub use logprobs::{MAX_TOP_LOGPROBS, TokenLogprobs};
pub use params::SamplingParams;

/// Chooses tokens for one text.
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// How often each id was chosen; kept only where a penalty asks for it.
    chosen: HashMap<u32, u32>,
    /// Candidates, kept to spare an allocation per token.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self, RuntimeError> {
        params.validate()?;
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        Ok(Self { params, rng, chosen: HashMap::new(), candidates: Vec::new() })
    }

    /// Of how many of the most likely tokens it chooses; `None` where it needs to see every logit.
    pub fn choices(&self) -> Option<usize> {
        // A penalty can bring a token down from among the most likely, or up into them.
        if self.params.reorders() {
            None
        } else if self.params.temperature == 0.0 {
            Some(1)
        } else {
            Some(self.params.top_k).filter(|&k| k > 0)
        }
    }

    /// The answer goes on with tokens that were chosen, here or by another.
    pub(crate) fn count(&mut self, chosen: &[u32]) {
        if self.penalizes_chosen() {
            chosen.iter().for_each(|&id| *self.chosen.entry(id).or_default() += 1);
        }
    }

    /// The next token, given the [most likely ones](Self::choices) that may be chosen, with their logits.
    ///
    /// # Errors
    /// Where there are none: the model's numbers have overflown.
    pub fn sample_of(&mut self, most_likely: &[(f32, u32)]) -> Result<u32, RuntimeError> {
        self.candidates.clear();
        self.candidates.extend_from_slice(most_likely);
        self.choose(&[])
    }

    /// The next token after `context` (prompt and answer so far). `allowed` says which ids may be chosen.
    ///
    /// # Errors
    /// Where no allowed id has a finite logit: the model's numbers have overflown.
    pub fn sample(
        &mut self,
        logits: &[f32],
        context: &[u32],
        allowed: impl Fn(u32) -> bool,
    ) -> Result<u32, RuntimeError> {
        self.candidates.clear();
        self.candidates.extend(
            logits
                .iter()
                .zip(0..)
                .filter(|&(l, id)| l.is_finite() && allowed(id))
                .map(|(&l, id)| (l, id)),
        );
        self.choose(context)
    }

    /// Chooses one of the candidates.
    fn choose(&mut self, context: &[u32]) -> Result<u32, RuntimeError> {
        if self.candidates.is_empty() {
            return Err(RuntimeError::NoFiniteLogit);
        }
        self.bias();
        self.penalize_repetition(context);
        self.penalize_chosen();
        let id = if self.params.temperature == 0.0 {
            self.most_likely()
        } else {
            self.sort_and_keep_top_k();
            let probabilities = self.probabilities();
            self.draw(&probabilities)
        };
        self.count(&[id]);
        Ok(id)
    }

    fn bias(&mut self) {
        if self.params.logit_bias.is_empty() {
            return;
        }
        let biases: HashMap<u32, f32> = self.params.logit_bias.iter().copied().collect();
        for (logit, id) in &mut self.candidates {
            *logit += biases.get(id).copied().unwrap_or(0.0);
        }
    }

    fn penalizes_chosen(&self) -> bool {
        self.params.frequency_penalty != 0.0 || self.params.presence_penalty != 0.0
    }

    /// `logit - count * frequency_penalty - (count > 0) * presence_penalty`
    /// (<https://platform.openai.com/docs/guides/text-generation>).
    fn penalize_chosen(&mut self) {
        if self.chosen.is_empty() {
            return;
        }
        for (logit, id) in &mut self.candidates {
            if let Some(&count) = self.chosen.get(id) {
                let SamplingParams { frequency_penalty, presence_penalty, .. } = self.params;
                *logit -= count as f32 * frequency_penalty + presence_penalty;
            }
        }
    }

    fn penalize_repetition(&mut self, context: &[u32]) {
        let penalty = self.params.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        let window = match self.params.repetition_window {
            0 => context.len(),
            n => n.min(context.len()),
        };
        let seen: HashSet<u32> = context[context.len() - window..].iter().copied().collect();
        for (logit, id) in &mut self.candidates {
            if seen.contains(id) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// The lowest id of those with the largest logit, as argmax of the reference has it.
    fn most_likely(&self) -> u32 {
        let mut best = self.candidates[0];
        for &(logit, id) in &self.candidates {
            if logit > best.0 {
                best = (logit, id);
            }
        }
        best.1
    }

    /// Sorts by falling logit (equal ones by id, so that a seed gives one text everywhere).
    fn sort_and_keep_top_k(&mut self) {
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let k = match self.params.top_k {
            0 => self.candidates.len(),
            k => k.min(self.candidates.len()),
        };
        if k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, order);
            self.candidates.truncate(k);
        }
        self.candidates.sort_unstable_by(order);
    }

    /// Unnormalised probabilities of the candidates that top-p and min-p leave, relative to the most likely.
    fn probabilities(&self) -> Vec<f32> {
        let max = self.candidates[0].0;
        let mut relative: Vec<f32> = self
            .candidates
            .iter()
            .map(|(logit, _)| ((logit - max) / self.params.temperature).exp())
            .collect();
        let total: f32 = relative.iter().sum();
        let mut cumulative = 0.0;
        let mut keep = relative.len();
        for (n, p) in relative.iter().enumerate() {
            // The most likely token has relative probability 1 and always stays.
            if n > 0 && (cumulative >= self.params.top_p * total || *p < self.params.min_p) {
                keep = n;
                break;
            }
            cumulative += p;
        }
        relative.truncate(keep);
        relative
    }

    fn draw(&mut self, probabilities: &[f32]) -> u32 {
        let total: f32 = probabilities.iter().sum();
        let mut left = uniform(&mut self.rng) * total;
        for (p, &(_, id)) in probabilities.iter().zip(&self.candidates) {
            left -= p;
            if left < 0.0 {
                return id;
            }
        }
        // Rounding can leave a crumb; it belongs to the last candidate.
        self.candidates[probabilities.len() - 1].1
    }
}

/// A number in `[0, 1)`.
fn uniform(rng: &mut impl Rng) -> f32 {
    rng.random()
}

#[cfg(test)]
mod tests;
