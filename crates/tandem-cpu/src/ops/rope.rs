//! Rotary position embedding, in NeoX's arrangement: number `i` of a head pairs with number `i + head_dim / 2`.

/// The angles of every position.
///
/// The angle of pair `i` at position `p` is `p * theta^(-2i / head_dim)`, computed in f32 as the reference does:
/// at large positions the rounding of that product is part of what the model was trained with.
#[derive(Clone, Debug)]
pub struct Rope {
    inv_freq: Vec<f32>,
    /// `[position][pair]`: cosine and sine, for the first positions.
    table: Vec<(f32, f32)>,
}

impl Rope {
    /// For heads of `head_dim` numbers and a base `theta`.
    ///
    /// # Panics
    /// When `head_dim` is odd or 0.
    pub fn new(head_dim: usize, theta: f32) -> Self {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "rope of head_dim {head_dim}");
        let exponents = (0..head_dim).step_by(2).map(|i| i as f32 / head_dim as f32);
        Self { inv_freq: exponents.map(|e| 1.0 / theta.powf(e)).collect(), table: Vec::new() }
    }

    /// Computes cosines and sines of positions below `positions` beforehand, where that has not been done. The results
    /// are the same; at 4096 positions and heads of 128 the table takes 2 MiB.
    pub fn extend_table(&mut self, positions: usize) {
        let known = self.table.len() / self.inv_freq.len();
        self.table.extend((known..positions).flat_map(|position| angles(&self.inv_freq, position)));
    }

    /// Writes cosine and sine of every pair, `[position][pair][2]`, of positions from `start` on: as many as `out` has
    /// room for.
    ///
    /// # Panics
    /// When `out` is not of whole positions.
    pub fn write_angles(&self, start: usize, out: &mut [f32]) {
        let positions = super::tokens("angles", out.len(), 2 * self.inv_freq.len());
        let all = (start..start + positions).flat_map(|p| angles(&self.inv_freq, p));
        for ([cos, sin], angle) in out.as_chunks_mut().0.iter_mut().zip(all) {
            (*cos, *sin) = angle;
        }
    }

    /// Rotates the queries or keys (`[head][head_dim]`, any number of heads) of the token at `position`.
    ///
    /// # Panics
    /// When `x` is not of whole heads.
    pub fn apply(&self, x: &mut [f32], position: usize) {
        let half = self.inv_freq.len();
        super::tokens("rope", x.len(), 2 * half);
        let computed: Vec<_>;
        let angles = match self.table.get(position * half..(position + 1) * half) {
            Some(angles) => angles,
            None => {
                computed = angles(&self.inv_freq, position).collect();
                &computed[..]
            }
        };
        for head in x.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Cosine and sine of each pair's angle.
fn angles(inv_freq: &[f32], position: usize) -> impl Iterator<Item = (f32, f32)> {
    inv_freq.iter().map(move |inv_freq| {
        let (sin, cos) = (position as f32 * inv_freq).sin_cos();
        (cos, sin)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's `1.0 / (10000.0 ** (torch.arange(0, 128, 2).float() / 128))` where that is a power of ten.
    #[test]
    fn frequencies() {
        let rope = Rope::new(128, 10_000.0);
        assert_eq!(rope.inv_freq.len(), 64);
        for (pair, exact) in [(0, 1.0f32), (16, 0.1), (32, 0.01), (48, 0.001)] {
            assert_eq!(rope.inv_freq[pair], exact);
        }
    }
}
