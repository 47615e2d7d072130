//! SparseMixer, the router of PhiMoE, as it works at inference.
//!
//! Source: `sparsemixer` in `modeling_slimmoe.py` of microsoft/Phi-tiny-MoE-instruct and in `transformers`'
//! `models/phimoe`. The function jumps at ties, so the order of operations and the way comparisons treat NaN are
//! part of it.

use crate::config::EXPERTS_PER_TOKEN;

/// The experts that one token goes to, with their weights. The weights do not add up to one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Routing {
    /// First and second choice.
    pub experts: [usize; EXPERTS_PER_TOKEN],
    /// The factor of each expert's output.
    pub weights: [f32; EXPERTS_PER_TOKEN],
}

/// Routes one token by its router logits; `jitter` is the config's `router_jitter_noise`.
///
/// # Panics
/// If there are fewer than two logits.
pub fn sparsemixer(logits: &[f32], jitter: f32) -> Routing {
    assert!(logits.len() >= EXPERTS_PER_TOKEN, "{} router logits", logits.len());
    let first = argmax(logits, None);
    let second = argmax(logits, Some(first));
    Routing {
        experts: [first, second],
        weights: [weight(logits, first, None, jitter), weight(logits, second, Some(first), jitter)],
    }
}

/// The index of the largest logit that is not `except`; the lowest one of equals.
fn argmax(logits: &[f32], except: Option<usize>) -> usize {
    let mut best = usize::from(except == Some(0));
    for (j, &s) in logits.iter().enumerate() {
        if Some(j) != except && s > logits[best] {
            best = j;
        }
    }
    best
}

/// Softmax weight of `chosen` among the logits that lie within `2 * jitter` of it, relative to the larger of the
/// logit's magnitude and the chosen logit. `0/0` is NaN and NaN is not greater, so such a logit is kept.
fn weight(logits: &[f32], chosen: usize, except: Option<usize>, jitter: f32) -> f32 {
    let max = logits[chosen];
    let mut sum = 0.0;
    for (j, &s) in logits.iter().enumerate() {
        if Some(j) == except {
            continue;
        }
        let masked = (max - s) / s.abs().max(max) > 2.0 * jitter;
        if !masked {
            sum += (s - max).exp();
        }
    }
    1.0 / sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_zero_logits_keep_every_expert() {
        let routing = sparsemixer(&[0.0; 16], 0.01);
        assert_eq!(routing.experts, [0, 1]);
        assert_eq!(routing.weights, [1.0 / 16.0, 1.0 / 15.0]);
    }

    #[test]
    fn a_clear_winner_has_weight_one() {
        let mut logits = [-1.0; 8];
        logits[5] = 4.0;
        logits[2] = 1.0;
        let routing = sparsemixer(&logits, 0.01);
        assert_eq!(routing, Routing { experts: [5, 2], weights: [1.0, 1.0] });
    }

    #[test]
    fn near_ties_share_and_the_lowest_index_wins() {
        let routing = sparsemixer(&[2.0, 2.0, -3.0, 1.97], 0.01);
        assert_eq!(routing.experts, [0, 1]);
        let e = (1.97f32 - 2.0).exp();
        assert!((routing.weights[0] - 1.0 / (2.0 + e)).abs() < 1e-6);
        assert!((routing.weights[1] - 1.0 / (1.0 + e)).abs() < 1e-6);
    }

    #[test]
    fn negative_maximum_divides_by_the_magnitude() {
        // (-1 - -1.01) / max(1.01, -1) = 0.0099 <= 0.02: kept.
        let routing = sparsemixer(&[-1.01, -1.0], 0.01);
        assert_eq!(routing.experts, [1, 0]);
        assert!((routing.weights[0] - 1.0 / (1.0 + (-0.01f32).exp())).abs() < 1e-6);
        assert_eq!(routing.weights[1], 1.0);
    }
}
