//! The operations of a forward pass as plain loops in f64, each result with the error that f32 may make: what every
//! implementation of an operation is held against.
//!
//! Tolerances are bounds on rounding, not numbers found by trying. [`U`] is half a unit in the last place. How many
//! roundings a sum takes depends on how an implementation adds it up, so that is the caller's to say.

/// Unit roundoff of f32.
pub const U: f64 = 1.0 / (1u32 << 24) as f64;

/// A number, and how far from it a result may be.
pub type Expected = (f64, f64);

/// Asserts that numbers are where they should be, each within its own tolerance.
///
/// # Panics
/// When one is not.
pub fn assert_close(what: &str, got: &[f32], expected: &[Expected]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (&got, &(expected, tolerance))) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        assert!(
            error <= tolerance,
            "{what}: [{index}] is {got}, should be {expected}: off by {error}, {tolerance} allowed"
        );
    }
}

/// `W x + b` for every token: `weights` is `[row][cols]`, `x` is `[token][cols]`.
///
/// A result may be off by `roundings` times [`U`], relative to the sum of its terms' magnitudes, and for each column by
/// what is lost below the normal range, `lost` times over.
pub fn products(
    weights: &[f32],
    bias: Option<&[f32]>,
    x: &[f32],
    cols: usize,
    roundings: f64,
    lost: f64,
) -> Vec<Expected> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for (row, w) in weights.chunks_exact(cols).enumerate() {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[row]));
            let (mut sum, mut magnitude) = (bias, bias.abs());
            for (w, x) in w.iter().zip(x) {
                let product = f64::from(*w) * f64::from(*x);
                sum += product;
                magnitude += product.abs();
            }
            let lost = cols as f64 * f64::from(f32::MIN_POSITIVE) * U * lost;
            out.push((sum, roundings * U * magnitude + lost));
        }
    }
    out
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` for every row of `x`.
///
/// `roundings` are those of the sums for mean and variance; none where they are computed in f64.
pub fn layer_norm(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    roundings: f64,
) -> Vec<Expected> {
    let width = weight.len();
    let mut out = Vec::new();
    for x in x.chunks_exact(width) {
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
        let deviations: Vec<f64> = x.iter().map(|x| f64::from(*x) - mean).collect();
        let variance = deviations.iter().map(|d| d * d).sum::<f64>() / width as f64;
        let usual = deviations.iter().map(|d| d.abs()).sum::<f64>() / width as f64;
        let norm = (variance + f64::from(eps)).sqrt();
        for ((d, w), b) in deviations.iter().zip(weight).zip(bias) {
            let (w, b) = (f64::from(*w), f64::from(*b));
            let scaled = d / norm * w;
            // Rounding of the quotient, the product and the sum; that of the sums, which moves every deviation and
            // the norm; and that of f64 sums, which shows where the deviations are nothing but rounding.
            let tolerance = 4.0 * U * (scaled.abs() + b.abs())
                + roundings * U * (scaled.abs() + usual / norm * w.abs())
                + 1e-12 * mean.abs() / norm;
            out.push((scaled + b, tolerance));
        }
    }
    out
}

/// `gate / (1 + exp(-gate)) * up`.
pub fn silu_mul(gate: &[f32], up: &[f32]) -> Vec<Expected> {
    let pairs = gate.iter().zip(up).map(|(g, u)| (f64::from(*g), f64::from(*u)));
    pairs
        .map(|(g, u)| {
            let exact = g / (1.0 + (-g).exp()) * u;
            // Two units in the last place for exp, half of one for each of the three others; and exp(-g) is infinite
            // in f32 where the result falls below 3e-37.
            (exact, 8.0 * U * exact.abs() + 3e-37)
        })
        .collect()
}

/// Heads of `dim` numbers at a position, rotated: number `i` of a head with number `i + dim / 2`, by the angle
/// `position * theta^(-2i / dim)`.
pub fn rope(x: &[f32], dim: usize, theta: f32, position: usize) -> Vec<Expected> {
    let half = dim / 2;
    (0..x.len())
        .map(|at| {
            let (head, i) = (at / dim * dim, at % dim % half);
            let (a, b) = (f64::from(x[head + i]), f64::from(x[head + half + i]));
            let angle = position as f64 * f64::from(theta).powf(-2.0 * i as f64 / dim as f64);
            let (sin, cos) = angle.sin_cos();
            let exact = if at % dim < half { a * cos - b * sin } else { b * cos + a * sin };
            // The f32 angle: exponent, power (the exponent's rounding times its logarithm), quotient and product.
            let angle_off = (5.0 + f64::from(theta).ln()) * U * angle;
            (exact, (angle_off + 6.0 * U) * (a.abs() + b.abs()))
        })
        .collect()
}

/// Queries of some tokens over keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// `[token][head][dim]`.
    pub q: &'a [f32],
    /// `[position][kv_head][dim]`, as stored.
    pub k: &'a [f32],
    /// As the keys; at most 1.
    pub v: &'a [f32],
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Position of the first token.
    pub start: usize,
    /// How many keys a query sees at most, its own included.
    pub window: Option<usize>,
}

impl Attention<'_> {
    /// Softmax of all scores at once. The error that f32 may make is the scores' rounding, `roundings` for each, which
    /// moves a weight by as much relative to itself, and that of the weighted sum.
    pub fn expected(&self, roundings: f64) -> Vec<Expected> {
        let tokens = self.q.len() / (self.heads * self.dim);
        let queries = (0..tokens).flat_map(|token| (0..self.heads).map(move |head| (token, head)));
        queries.flat_map(|(token, head)| self.of_query(token, head, roundings)).collect()
    }

    fn of_query(&self, token: usize, head: usize, roundings: f64) -> Vec<Expected> {
        let i = self.start + token;
        let visible: Vec<usize> =
            (0..=i).filter(|j| self.window.is_none_or(|window| j + window > i)).collect();
        let kv_head = head / (self.heads / self.kv_heads);
        let row = |all: &[f32], position: usize| -> Vec<f64> {
            let at = (position * self.kv_heads + kv_head) * self.dim;
            all[at..at + self.dim].iter().map(|x| f64::from(*x)).collect()
        };
        let q = &self.q[(token * self.heads + head) * self.dim..][..self.dim];
        let scale = 1.0 / (self.dim as f64).sqrt();
        let mut worst = 0f64;
        let scores: Vec<f64> = (visible.iter())
            .map(|&j| {
                let terms: Vec<f64> =
                    q.iter().zip(row(self.k, j)).map(|(q, k)| f64::from(*q) * k * scale).collect();
                worst = worst.max(terms.iter().map(|term| term.abs()).sum());
                terms.iter().sum()
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut mixed = vec![0.0; self.dim];
        for (&j, weight) in visible.iter().zip(&weights) {
            for (mixed, v) in mixed.iter_mut().zip(row(self.v, j)) {
                *mixed += weight / sum * v;
            }
        }
        let tolerance = 2.0 * roundings * U * worst + (visible.len() + 64) as f64 * U;
        mixed.into_iter().map(|x| (x, tolerance)).collect()
    }
}
