//! Q4_1: 32 weights in 20 bytes: an f16 scale `d`, an f16 minimum `m`, then 16 bytes of 4-bit quants `q`, halves as in
//! [`super::q4_0`]. A weight is `d * q + m`.

use super::f16_at;

pub(super) fn decode(block: &[u8; 20], weights: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let (low, high) = weights.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = f32::from(byte & 15) * d + m;
        *high = f32::from(byte >> 4) * d + m;
    }
}
