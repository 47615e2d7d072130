//! Q4_0: 32 weights in 18 bytes: an f16 scale `d`, then 16 bytes of 4-bit quants `q` with an offset of 8. Byte `i`
//! holds weight `i` in its low half and weight `i + 16` in its high half. A weight is `d * (q - 8)`.
//!
//! # Choosing the scale
//! GGML's rule makes the weight of largest magnitude -8 exactly. That spends the scale on one weight: the squared error
//! of Gaussian weights falls by 11 % when `d` is searched for instead, at no cost to anybody who reads the block.
//! The error is a function of `d` alone, since for a given `d` the best quants are the nearest ones, and it has many
//! local minima, since quants jump. So:
//!
//! 1. For each inverse scale on a grid (both signs, because quants reach -8 but only 7), take the nearest quants. The
//!    least-squares scale of those is `d = sum(w q) / sum(q^2)`, which removes `sum(w q)^2 / sum(q^2)` from the error;
//!    the candidate that removes most wins. Finer or wider grids than this one gain less than 0.1 %.
//! 2. Refine: new nearest quants for the winning scale, new least-squares scale.
//! 3. Round to f16, as the block stores it, and measure the error with the quants nearest for the rounded scale.
//!    GGML's scale competes here on the same terms, so a block is never worse than under GGML's rule.

use half::f16;

use super::f16_at;

/// Candidates of each sign.
const GRID: usize = 13;
/// Distance between candidates, in quants that the largest weight becomes.
const GRID_STEP: f32 = 0.25;
/// Smallest candidates. The negative ones hold -8 exactly: GGML's rule.
const GRID_START: [f32; 2] = [-6.75, 6.0];
/// How often the best candidate is refined.
const REFINEMENTS: usize = 2;
/// Sums are kept in this many parts, which is what allows vector instructions: float addition has an order.
const LANES: usize = 8;

pub(super) fn decode(block: &[u8; 18], weights: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let (low, high) = weights.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = (f32::from(byte & 15) - 8.0) * d;
        *high = (f32::from(byte >> 4) - 8.0) * d;
    }
}

pub(super) fn encode(weights: &[f32; 32], block: &mut [u8; 18]) {
    let largest = weights.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    // Below half of the smallest f16 every scale that is not zero makes things worse.
    if largest.abs() < 0.5 * f16::MIN_POSITIVE_SUBNORMAL.to_f32() {
        block[..2].fill(0);
        block[2..].fill(8 << 4 | 8);
        return;
    }
    let inverse = 1.0 / largest;
    let relative = weights.map(|w| w * inverse);
    let d = best_scale(&relative, largest);
    let relative_d = d.to_f32() * inverse;
    let quants =
        relative.map(|w| if relative_d == 0.0 { 0.0 } else { nearest(w, 1.0 / relative_d) });
    block[..2].copy_from_slice(&d.to_le_bytes());
    for (i, byte) in block[2..].iter_mut().enumerate() {
        let nibble = |q: f32| (q + 8.0) as u8;
        *byte = nibble(quants[i]) | nibble(quants[i + 16]) << 4;
    }
}

/// The scale of least squared error for weights given relative to the `largest`, so that no square overflows.
fn best_scale(relative: &[f32; 32], largest: f32) -> f16 {
    let mut d = grid_scale(relative);
    for _ in 0..REFINEMENTS {
        d = Fit::of(relative, 1.0 / d).scale();
    }
    let stored = |d: f32| f16::from_f32((d * largest).clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
    let mut best = f16::ZERO;
    let mut least = squared_error(relative, 0.0, 0.0);
    for candidate in [stored(-0.125), stored(d)] {
        let d = candidate.to_f32() / largest;
        if d != 0.0 {
            let error = squared_error(relative, d, 1.0 / d);
            if error < least {
                (best, least) = (candidate, error);
            }
        }
    }
    best
}

/// The best least-squares scale of the grid.
fn grid_scale(relative: &[f32; 32]) -> f32 {
    let mut best = Fit::of(relative, -8.0);
    for start in GRID_START {
        for i in 0..GRID {
            let fit = Fit::of(relative, start + (GRID_STEP * i as f32).copysign(start));
            if fit.gain() > best.gain() {
                best = fit;
            }
        }
    }
    best.scale()
}

/// Weights `w` and the quants `q` nearest to them under some scale.
struct Fit {
    /// `sum(w q)`.
    wq: f32,
    /// `sum(q^2)`; not zero, since the grid gives the largest weight a quant of 6 or more.
    qq: f32,
}

impl Fit {
    fn of(weights: &[f32; 32], inverse_d: f32) -> Self {
        let (mut wq, mut qq) = ([0.0; LANES], [0.0; LANES]);
        for part in weights.as_chunks::<LANES>().0 {
            for i in 0..LANES {
                let q = nearest(part[i], inverse_d);
                wq[i] += part[i] * q;
                qq[i] += q * q;
            }
        }
        Self { wq: wq.iter().sum(), qq: qq.iter().sum() }
    }

    /// The least-squares scale for these quants.
    fn scale(&self) -> f32 {
        self.wq / self.qq
    }

    /// How much of `sum(w^2)` that scale removes.
    fn gain(&self) -> f32 {
        self.wq * self.wq / self.qq
    }
}

fn squared_error(weights: &[f32; 32], d: f32, inverse_d: f32) -> f32 {
    let mut sums = [0.0; LANES];
    for part in weights.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let error = part[i] - d * nearest(part[i], inverse_d);
            sums[i] += error * error;
        }
    }
    sums.iter().sum()
}

/// The quant nearest to `w / d`, from -8 to 7.
fn nearest(w: f32, inverse_d: f32) -> f32 {
    /// Adding and taking away 1.5 * 2^23 leaves no bits for a fraction: rounds to nearest even, on any vector unit.
    const NO_FRACTION: f32 = 12_582_912.0;
    // Not `clamp` or `min`: those treat NaN with care, which costs instructions.
    let scaled = w * inverse_d;
    let scaled = if scaled < -8.0 { -8.0 } else { scaled };
    let scaled = if scaled > 7.0 { 7.0 } else { scaled };
    (scaled + NO_FRACTION) - NO_FRACTION
}
