//! How likely the model found a token.

/// The most alternatives that are told with a token, whoever asks.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// A chosen token's log probability, and the most likely ones'.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub id: u32,
    /// The logarithm of the probability that the model's own logits give it, before bias, penalties and temperature,
    /// among all ids that have a token.
    pub logprob: f32,
    /// The most likely ids with theirs, the likeliest first: as many as were asked for. The chosen one need not be among
    /// them.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Of the token `id`, with the `count` most likely ones. `allowed` says which ids have a token.
    pub(crate) fn new(
        logits: &[f32],
        id: u32,
        count: usize,
        allowed: impl Fn(u32) -> bool,
    ) -> Self {
        let mut candidates: Vec<(f32, u32)> = logits
            .iter()
            .copied()
            .zip(0..)
            .filter(|&(logit, id)| logit.is_finite() && allowed(id))
            .collect();
        let max = candidates.iter().fold(f32::NEG_INFINITY, |max, &(logit, _)| max.max(logit));
        let sum: f64 = candidates.iter().map(|&(logit, _)| f64::from(logit - max).exp()).sum();
        let logprob = |logit: f32| (f64::from(logit - max) - sum.ln()) as f32;
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if count > 0 && count < candidates.len() {
            candidates.select_nth_unstable_by(count - 1, order);
        }
        candidates.truncate(count);
        candidates.sort_unstable_by(order);
        let chosen = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let top = candidates.into_iter().map(|(logit, id)| (id, logprob(logit))).collect();
        Self { id, logprob: logprob(chosen), top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_the_softmax_over_tokens() {
        // Id 1 has no token; without it the probabilities are e^2 and e^1 and e^0 by their sum.
        let logits = [1.0, 9.0, 2.0, 0.0];
        let of = |id, count| TokenLogprobs::new(&logits, id, count, |id| id != 1);
        let sum = (2f32.exp() + 1f32.exp() + 1.0).ln();
        let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
        let found = of(3, 2);
        close(found.logprob, -sum);
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 0]);
        close(found.top[0].1, 2.0 - sum);
        close(found.top[1].1, 1.0 - sum);
        assert_eq!(of(2, 0).top, []);
        assert_eq!(of(2, 20).top.len(), 3);
    }
}
