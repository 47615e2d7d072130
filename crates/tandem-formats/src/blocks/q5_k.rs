//! Q5_K: 256 weights in 176 bytes: scales and minima as in [`super::q4_k`], 32 bytes with the quants' fifth bits, 128
//! bytes with their lower four. Bit `i` of fifth-bit byte `j` belongs to weight `j` of sub-block `i`.

use super::q4_k::sub_block_factors;

pub(super) fn decode(block: &[u8; 176], weights: &mut [f32; 256]) {
    let factors = sub_block_factors(block);
    let fifth_bits = &block[16..48];
    let (quants, _) = block[48..].as_chunks::<32>();
    let (pairs, _) = weights.as_chunks_mut::<64>();
    for (p, (pair, quants)) in pairs.iter_mut().zip(quants).enumerate() {
        let [(scale0, min0), (scale1, min1)] = [factors[2 * p], factors[2 * p + 1]];
        let (low, high) = pair.split_at_mut(32);
        for (((low, high), &byte), &fifth) in low.iter_mut().zip(high).zip(quants).zip(fifth_bits) {
            let fifth = fifth >> (2 * p);
            *low = scale0 * f32::from(byte & 15 | (fifth & 1) << 4) - min0;
            *high = scale1 * f32::from(byte >> 4 | (fifth >> 1 & 1) << 4) - min1;
        }
    }
}
