//! SparseMixer: the router that PhiMoE chooses two experts with.
//!
//! As the reference computes it at inference (`sparsemixer` in transformers' `modeling_phimoe.py`, with
//! `jitter_eps` = the model's `router_jitter_noise`). It jumps where two logits are equal or differ by exactly
//! the jitter, so every comparison is done in the reference's order and type.

use super::argmax;

/// The two experts of a token and what their outputs are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// The experts, the one with the larger logit first.
    pub experts: [usize; 2],
    /// Their weights. Not normalised: the sum is usually about 2.
    pub weights: [f32; 2],
}

/// Chooses two experts by their `logits`.
///
/// An expert counts towards a weight unless it lies too far below the chosen one:
/// `(m - s) / max(|s|, m) > 2 eps`. Where that is 0 / 0 the comparison with NaN is false and the expert counts,
/// as in the reference.
///
/// # Panics
/// When there are fewer than two experts.
pub fn sparsemixer(logits: &[f32], eps: f32) -> Routing {
    assert!(logits.len() >= 2, "router of {} experts", logits.len());
    let limit = 2.0 * eps;
    let first = argmax(logits);
    let second = argmax(&masked(logits, first));
    let weight = |chosen: usize, excluded: Option<usize>| {
        let max = logits[chosen];
        // False for 0 / 0.
        let too_low = |s: f32| (max - s) / larger(s.abs(), max) > limit;
        let kept = logits.iter().enumerate().filter(|&(j, &s)| Some(j) != excluded && !too_low(s));
        1.0 / kept.map(|(_, s)| (s - max).exp()).sum::<f32>()
    };
    Routing {
        experts: [first, second],
        weights: [weight(first, None), weight(second, Some(first))],
    }
}

/// The logits, with that of a chosen expert out of reach.
fn masked(logits: &[f32], chosen: usize) -> Vec<f32> {
    let mut masked = logits.to_vec();
    masked[chosen] = f32::NEG_INFINITY;
    masked
}

/// The larger of two numbers; NaN if either is, unlike `f32::max`.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}
