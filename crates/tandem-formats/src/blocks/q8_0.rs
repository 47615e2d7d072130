//! Q8_0: 32 weights in 34 bytes: an f16 scale `d`, then 32 signed bytes `q`. A weight is `d * q`.

use half::f16;

use super::f16_at;

pub(super) fn decode(block: &[u8; 34], weights: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (w, &q) in weights.iter_mut().zip(&block[2..]) {
        *w = f32::from(q as i8) * d;
    }
}

/// GGML's rule: the largest magnitude becomes 127, ties round away from zero, and quants are made with the scale
/// before it is rounded to f16.
pub(super) fn encode(weights: &[f32; 32], block: &mut [u8; 34]) {
    let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    let d = largest / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (q, &w) in block[2..].iter_mut().zip(weights) {
        *q = round_ties_away(w * inverse) as i8 as u8;
    }
}

/// [`f32::round`] for small numbers, in a form that becomes vector instructions on every x86-64. The constant is the
/// largest float below one half, so that nothing below a tie is lifted over it.
fn round_ties_away(x: f32) -> i32 {
    (x + 0.499_999_97_f32.copysign(x)) as i32
}
