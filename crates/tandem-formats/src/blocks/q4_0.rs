//! Q4_0: 32 weights in 18 bytes: an f16 scale `d`, then 16 bytes of 4-bit quants `q` with an offset of 8. Byte `i`
//! holds weight `i` in its low half and weight `i + 16` in its high half. A weight is `d * (q - 8)`.

use half::f16;

use super::f16_at;

pub(super) fn decode(block: &[u8; 18], weights: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let (low, high) = weights.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = (f32::from(byte & 15) - 8.0) * d;
        *high = (f32::from(byte >> 4) - 8.0) * d;
    }
}

/// The weight of largest magnitude becomes -8.
pub(super) fn encode(weights: &[f32; 32], block: &mut [u8; 18]) {
    let extreme = weights.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    let d = f16::from_f32(extreme / -8.0);
    let inverse = if d == f16::ZERO { 0.0 } else { 1.0 / d.to_f32() };
    let quant = |w: f32| ((w * inverse).round_ties_even().clamp(-8.0, 7.0) + 8.0) as u8;
    block[..2].copy_from_slice(&d.to_le_bytes());
    for i in 0..16 {
        block[2 + i] = quant(weights[i]) | quant(weights[i + 16]) << 4;
    }
}
