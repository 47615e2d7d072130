//! Q5_0: 32 weights in 22 bytes: an f16 scale `d`, 32 bits that are the fifth bits of weights 0 to 31, then 16 bytes of
//! the lower four bits, halves as in [`super::q4_0`]. With the five bits as `q`, a weight is `d * (q - 16)`.

use super::f16_at;

pub(super) fn decode(block: &[u8; 22], weights: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let [_, _, h0, h1, h2, h3, lower @ ..] = block;
    let quants = quants(u32::from_le_bytes([*h0, *h1, *h2, *h3]), lower);
    for (w, q) in weights.iter_mut().zip(quants) {
        *w = (f32::from(q) - 16.0) * d;
    }
}

/// Joins the fifth bits with 16 bytes of lower bits.
pub(super) fn quants(fifth_bits: u32, lower: &[u8; 16]) -> [u8; 32] {
    let mut quants = [0; 32];
    let (low, high) = quants.split_at_mut(16);
    for (i, ((low, high), &byte)) in low.iter_mut().zip(high).zip(lower).enumerate() {
        *low = byte & 15 | ((fifth_bits >> i) as u8 & 1) << 4;
        *high = byte >> 4 | ((fifth_bits >> (i + 16)) as u8 & 1) << 4;
    }
    quants
}
