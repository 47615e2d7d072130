//! From logits to the next token.
//!
//! The order is that of HF `transformers`: repetition penalty, temperature, top-k, top-p, min-p. Greedy is
//! temperature 0. Ids without a token (Phi-tiny-MoE has 53 of them) are never chosen, whatever their logit.

use std::collections::HashSet;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::RuntimeError;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens seen before are divided (where positive) or multiplied by this; 1 does nothing.
    pub repetition_penalty: f32,
    /// Tokens back that the penalty looks at; 0 is all.
    pub repetition_window: usize,
    /// Start of the random numbers.
    pub seed: u64,
}

impl SamplingParams {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        repetition_window: 0,
        seed: 0,
    };

    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// Names the parameter, its range and its value.
    pub fn validate(&self) -> Result<(), RuntimeError> {
        let check = |ok: bool, name, expected, found: f32| {
            if ok { Ok(()) } else { Err(RuntimeError::Parameter { name, expected, found }) }
        };
        let t = self.temperature;
        check(t >= 0.0 && t.is_finite(), "temperature", "0 or more", t)?;
        check(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            "more than 0, at most 1",
            self.top_p,
        )?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", "0 to 1", self.min_p)?;
        let penalty = self.repetition_penalty;
        check(penalty > 0.0 && penalty.is_finite(), "repetition_penalty", "more than 0", penalty)
    }
}

/// Chooses tokens for one text.
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
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
        Ok(Self { params, rng, candidates: Vec::new() })
    }

    /// Of how many of the most likely tokens it chooses; `None` where it needs to see every logit.
    pub fn choices(&self) -> Option<usize> {
        // A penalty can bring a token down from among the most likely, or up into them.
        if self.params.repetition_penalty != 1.0 {
            None
        } else if self.params.temperature == 0.0 {
            Some(1)
        } else {
            Some(self.params.top_k).filter(|&k| k > 0)
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
        self.penalize(context);
        if self.params.temperature == 0.0 {
            return Ok(self.most_likely());
        }
        self.sort_and_keep_top_k();
        let probabilities = self.probabilities();
        Ok(self.draw(&probabilities))
    }

    fn penalize(&mut self, context: &[u32]) {
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
mod tests {
    use super::*;

    fn params() -> SamplingParams {
        SamplingParams { temperature: 1.0, ..SamplingParams::GREEDY }
    }

    /// Frequencies of `n` draws.
    fn draw(params: SamplingParams, logits: &[f32], n: usize) -> Vec<f32> {
        let mut sampler = Sampler::new(params).unwrap();
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(logits, &[], |_| true).unwrap() as usize] += 1.0 / n as f32;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut sampler = Sampler::new(SamplingParams::GREEDY).unwrap();
        assert_eq!(sampler.sample(&[0.0, 3.0, 3.0], &[], |_| true).unwrap(), 1);
    }

    #[test]
    fn ids_without_a_token_are_never_chosen() {
        let mut sampler = Sampler::new(SamplingParams::GREEDY).unwrap();
        assert_eq!(sampler.sample(&[0.0, 9.0, 1.0], &[], |id| id != 1).unwrap(), 2);
        let mut sampler = Sampler::new(params()).unwrap();
        for _ in 0..200 {
            assert_ne!(sampler.sample(&[0.0, 9.0, 1.0], &[], |id| id != 1).unwrap(), 1);
        }
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let total: f32 = logits.iter().map(|l: &f32| l.exp()).sum();
        for (got, logit) in draw(params(), &logits, 40_000).into_iter().zip(logits) {
            assert!((got - logit.exp() / total).abs() < 0.01, "{got} for logit {logit}");
        }
        let hot = draw(SamplingParams { temperature: 2.0, ..params() }, &logits, 40_000);
        let total: f32 = logits.iter().map(|l| (l / 2.0).exp()).sum();
        assert!((hot[3] - (-0.5f32).exp() / total).abs() < 0.01);
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let logits = [3.0, 2.0, 1.0, 0.0]; // probabilities 0.644 0.237 0.087 0.032
        let possible =
            |p: SamplingParams| draw(p, &logits, 5_000).iter().filter(|&&f| f > 0.0).count();
        assert_eq!(possible(params()), 4);
        assert_eq!(possible(SamplingParams { top_k: 2, ..params() }), 2);
        assert_eq!(possible(SamplingParams { top_p: 0.6, ..params() }), 1);
        assert_eq!(possible(SamplingParams { top_p: 0.7, ..params() }), 2);
        assert_eq!(possible(SamplingParams { min_p: 0.1, ..params() }), 3); // e^-2 = 0.135, e^-3 = 0.050
    }

    /// The choices alone lead to the same token as all logits do, draw after draw.
    #[test]
    fn the_choices_are_enough() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for params in [
            SamplingParams::GREEDY,
            SamplingParams { top_k: 1, ..params() },
            SamplingParams { top_k: 5, top_p: 0.7, ..params() },
            SamplingParams { top_k: 40, min_p: 0.1, temperature: 0.4, ..params() },
        ] {
            let mut all = Sampler::new(params.clone()).unwrap();
            let mut few = Sampler::new(params).unwrap();
            for _ in 0..300 {
                let logits: Vec<f32> = (0..200).map(|_| 8.0 * uniform(&mut rng)).collect();
                let mut likely: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
                likely.retain(|(_, id)| id % 3 != 0);
                likely.sort_by(|a, b| b.0.total_cmp(&a.0));
                likely.truncate(few.choices().unwrap());
                let expected = all.sample(&logits, &[], |id| id % 3 != 0).unwrap();
                assert_eq!(few.sample_of(&likely).unwrap(), expected);
            }
        }
        let penalty = SamplingParams { repetition_penalty: 1.1, top_k: 5, ..params() };
        assert_eq!(Sampler::new(penalty).unwrap().choices(), None);
        assert_eq!(Sampler::new(params()).unwrap().choices(), None);
    }

    #[test]
    fn repetition_penalty_lowers_seen_tokens_of_either_sign() {
        let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::GREEDY };
        let mut sampler = Sampler::new(params.clone()).unwrap();
        assert_eq!(sampler.sample(&[1.5, 2.0], &[1], |_| true).unwrap(), 0);
        assert_eq!(sampler.sample(&[-1.5, -1.0], &[1], |_| true).unwrap(), 0);
        let windowed = SamplingParams { repetition_window: 1, ..params };
        let mut sampler = Sampler::new(windowed).unwrap();
        assert_eq!(sampler.sample(&[1.5, 2.0], &[1, 0], |_| true).unwrap(), 1);
    }

    #[test]
    fn a_seed_gives_one_text() {
        let run = |seed| {
            let mut sampler = Sampler::new(SamplingParams { seed, ..params() }).unwrap();
            (0..50).map(|_| sampler.sample(&[0.0; 64], &[], |_| true).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn overflown_logits_are_an_error() {
        let mut sampler = Sampler::new(params()).unwrap();
        let result = sampler.sample(&[f32::NAN, f32::INFINITY], &[], |_| true);
        assert!(matches!(result, Err(RuntimeError::NoFiniteLogit)));
    }

    #[test]
    fn bad_parameters_are_named() {
        let bad = SamplingParams { top_p: 1.5, ..params() };
        let message = Sampler::new(bad).err().unwrap().to_string();
        assert_eq!(message, "top_p: expected more than 0, at most 1, found 1.5");
    }
}
