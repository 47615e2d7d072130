//! Q5_1: 32 weights in 24 bytes: an f16 scale `d`, an f16 minimum `m`, then fifth bits and lower bits as in
//! [`super::q5_0`]. A weight is `d * q + m`.

use super::f16_at;
use super::q5_0::quants;

pub(super) fn decode(block: &[u8; 24], weights: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let [_, _, _, _, h0, h1, h2, h3, lower @ ..] = block;
    let quants = quants(u32::from_le_bytes([*h0, *h1, *h2, *h3]), lower);
    for (w, q) in weights.iter_mut().zip(quants) {
        *w = f32::from(q) * d + m;
    }
}
