//! Q6_K: 256 weights in 210 bytes: 128 bytes with the quants' lower four bits, 64 with their upper two, 16 signed bytes
//! of scales `s`, an f16 `d`. Each sub-block of 16 weights has a scale; with the six bits as `q`, a weight is
//! `d * s * (q - 32)`.
//!
//! The block is two halves of 128 weights, each with 64 lower-bit bytes, 32 upper-bit bytes and 8 scales. A half is four
//! runs of 32 weights: runs 0 and 1 take the low halves of the first and second 32 lower-bit bytes, runs 2 and 3 the
//! high halves, and run `r` takes bits `2r` and `2r + 1` of the upper-bit bytes.

use super::f16_at;

pub(super) fn decode(block: &[u8; 210], weights: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    let (lower, rest) = block.split_at(128);
    let (upper, rest) = rest.split_at(64);
    let (halves, _) = weights.as_chunks_mut::<128>();
    for (h, half) in halves.iter_mut().enumerate() {
        let (lower, upper) = (&lower[64 * h..][..64], &upper[32 * h..][..32]);
        let scales = &rest[8 * h..][..8];
        let (runs, _) = half.as_chunks_mut::<32>();
        for (r, run) in runs.iter_mut().enumerate() {
            let lower = &lower[32 * (r % 2)..][..32];
            let quants: [u8; 32] = std::array::from_fn(|i| {
                lower[i] >> (4 * (r / 2)) & 15 | (upper[i] >> (2 * r) & 3) << 4
            });
            for (s, (weights, quants)) in run.chunks_mut(16).zip(quants.chunks(16)).enumerate() {
                let scale = d * f32::from(scales[2 * r + s] as i8);
                for (w, &q) in weights.iter_mut().zip(quants) {
                    *w = scale * (f32::from(q) - 32.0);
                }
            }
        }
    }
}
