//! Rotary position embedding, in NeoX's arrangement: number `i` of a head pairs with number `i + head_dim / 2`.

/// Cosines and sines of every position's angles.
///
/// The angle of pair `i` at position `p` is `p * theta^(-2i / head_dim)`, computed in f32 as the reference does:
/// at large positions the rounding of that product is part of what the model was trained with.
#[derive(Debug)]
pub struct Rope {
    inv_freq: Vec<f32>,
    /// `[position][pair]`, cosine and sine, for the positions asked for at the start.
    table: Vec<(f32, f32)>,
}

impl Rope {
    /// For heads of `head_dim` numbers and a base `theta`. Positions below `context` are looked up later, those
    /// beyond computed each time.
    ///
    /// # Panics
    /// When `head_dim` is odd or 0.
    pub fn new(head_dim: usize, theta: f32, context: usize) -> Self {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2), "rope of head_dim {head_dim}");
        let inv_freq: Vec<f32> = (0..head_dim)
            .step_by(2)
            .map(|i| 1.0 / theta.powf(i as f32 / head_dim as f32))
            .collect();
        let table = (0..context).flat_map(|position| angles(&inv_freq, position)).collect();
        Self { inv_freq, table }
    }

    /// Inverse frequencies, one for each pair.
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Rotates `n_heads` queries or keys (`[head][head_dim]`) of the token at `position`.
    ///
    /// # Panics
    /// When `x` is not of that size.
    pub fn apply(&self, x: &mut [f32], n_heads: usize, head_dim: usize, position: usize) {
        let half = self.inv_freq.len();
        assert_eq!(head_dim, 2 * half, "rope: head_dim");
        assert_eq!(x.len(), n_heads * head_dim, "rope: numbers of {n_heads} heads");
        let computed: Vec<_>;
        let angles = match self.table.get(position * half..(position + 1) * half) {
            Some(angles) => angles,
            None => {
                computed = angles(&self.inv_freq, position).collect();
                &computed[..]
            }
        };
        for head in x.chunks_exact_mut(head_dim) {
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
