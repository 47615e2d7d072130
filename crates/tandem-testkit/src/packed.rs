//! Inputs of products with packed weights that every device is held against: raw blocks of q4_0 and q8_0, each a scale
//! of 16 bits with quants after it, and activations that are hard on 8 bits.

use crate::Rng;

/// Scales at the ends of f16: the largest, its negative, the smallest, and both zeros.
const EXTREME_SCALES: [u16; 5] = [0x7bff, 0xfbff, 0x0001, 0x0000, 0x8000];

/// Bytes of quants, in turns: -8 and 0, 7 and -1, -128, 127, mixes of signs.
pub const EXTREME_QUANTS: [[u8; 2]; 6] =
    [[0x00; 2], [0xff; 2], [0x80; 2], [0x7f; 2], [0x80, 0x7f], [0xf0, 0x0f]];

/// Activations by column: that make every sum as large as it can be, so that whatever saturates does; very large, very
/// small, and too small.
pub const EXTREME_ACTIVATIONS: [fn(usize, &mut Rng) -> f32; 8] = [
    |_, _| 1.0,
    |_, _| -1.0,
    |col, _| if col % 2 == 0 { 1.0 } else { -1.0 },
    |col, _| if col % 32 < 16 { 1.0 } else { -1.0 },
    |_, rng| rng.uniform(),
    |col, rng| if col < 64 { 0.0 } else { rng.normal() * 1e25 },
    |_, rng| rng.normal() * 1e-30,
    |_, rng| rng.normal() * 1e-38,
];

/// Blocks of random bytes, so every quant occurs, with sane scales: magnitudes from 2^-14 to 2^-4.
pub fn random_blocks(rng: &mut Rng, block_bytes: usize, count: usize) -> Vec<u8> {
    let mut raw = vec![0; block_bytes * count];
    rng.fill(&mut raw);
    for block in raw.chunks_exact_mut(block_bytes) {
        let (sign, exponent) = (u16::from(block[1] & 0x80) << 8, 1 + rng.below(10) as u16);
        let mantissa = u16::from_le_bytes([block[0], block[1]]) & 0x03ff;
        block[..2].copy_from_slice(&(sign | exponent << 10 | mantissa).to_le_bytes());
    }
    raw
}

/// Blocks with extreme scales, one after the other, and the same quants in all of them.
pub fn extreme_blocks(block_bytes: usize, count: usize, quants: [u8; 2]) -> Vec<u8> {
    let mut raw = vec![0; block_bytes * count];
    for (block, scale) in raw.chunks_exact_mut(block_bytes).zip(EXTREME_SCALES.iter().cycle()) {
        block[..2].copy_from_slice(&scale.to_le_bytes());
        block[2..].iter_mut().zip(quants.iter().cycle()).for_each(|(to, &quant)| *to = quant);
    }
    raw
}

/// Activations in blocks of very different size, with ties and both ends of the range of 8 bits.
pub fn activations_to_quantize(rng: &mut Rng, count: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..count).map(|_| 2.0 * rng.uniform() - 1.0).collect();
    for (i, block) in x.chunks_mut(32).enumerate() {
        let scale = [1.0, 1e-20, 1e20, 0.0][i % 4];
        block.iter_mut().for_each(|x| *x *= scale);
    }
    x[..4].copy_from_slice(&[127.0, -127.0, 0.5, -1.5]);
    x
}
