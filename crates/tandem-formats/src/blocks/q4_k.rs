//! Q4_K: 256 weights in 144 bytes: an f16 `d` and an f16 `dmin`, 12 bytes with eight 6-bit scales and minima, 128 bytes
//! of 4-bit quants `q`. Each sub-block of 32 weights has a scale `s` and a minimum `m`; a weight is
//! `d * s * q - dmin * m`. Each 32 bytes of quants hold one sub-block in their low halves, the next in their high ones.

use super::f16_at;

pub(super) fn decode(block: &[u8; 144], weights: &mut [f32; 256]) {
    let factors = sub_block_factors(block);
    let (quants, _) = block[16..].as_chunks::<32>();
    let (pairs, _) = weights.as_chunks_mut::<64>();
    for ((pair, quants), factors) in pairs.iter_mut().zip(quants).zip(factors.as_chunks().0) {
        let [(scale0, min0), (scale1, min1)] = *factors;
        let (low, high) = pair.split_at_mut(32);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(quants) {
            *low = scale0 * f32::from(byte & 15) - min0;
            *high = scale1 * f32::from(byte >> 4) - min1;
        }
    }
}

/// `d * s` and `dmin * m` of the eight sub-blocks, from the first 16 bytes, which Q4_K and Q5_K share.
///
/// The 12 bytes hold scales 0-3 and then minima 0-3 in the low 6 bits of their first eight, the low four bits of
/// scales and minima 4-7 in the halves of their last four; those find their upper two bits on top of the first eight.
pub(super) fn sub_block_factors(block: &[u8]) -> [(f32, f32); 8] {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let packed = &block[4..16];
    std::array::from_fn(|i| {
        let (scale, min) = if i < 4 {
            (packed[i] & 63, packed[i + 4] & 63)
        } else {
            let low = packed[i + 4];
            (low & 15 | packed[i - 4] >> 6 << 4, low >> 4 | packed[i] >> 6 << 4)
        };
        (d * f32::from(scale), dmin * f32::from(min))
    })
}
