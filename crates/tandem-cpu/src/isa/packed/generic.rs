//! Plain Rust, for every machine.
//!
//! Loops run over the rows of a tile innermost, which a compiler can turn into vector instructions.

use std::hint::black_box;

use tandem_memory::PackedType;
use tandem_memory::packed::{BLOCK_COLS, TILE_ROWS};

use super::{PackedKernels, QuantizedBlock, Quants, Tile, Tokens, scales_of};

/// The packed kernels in plain Rust.
pub(in crate::isa) struct Generic;

impl PackedKernels for Generic {
    fn quantize(&self, x: &[f32], out: &mut [QuantizedBlock]) {
        let (x, rest) = x.as_chunks::<BLOCK_COLS>();
        assert!(rest.is_empty() && x.len() == out.len(), "activations of {} blocks", out.len());
        for (x, out) in x.iter().zip(out) {
            *out = quantize(x);
        }
    }

    fn batch(&self) -> usize {
        8
    }

    fn tile_dots(&self, tile: Tile<'_>, mut tokens: Tokens<'_, '_, 1>) {
        while let Some(([x], [[sums]])) = tokens.take::<1>() {
            sums.fill(0.0);
            let quants = tile.quants.chunks_exact(tile.kind.bytes());
            for ((quants, scales), x) in quants.zip(tile.scales).zip(*x) {
                let dots = match tile.kind {
                    Quants::Q4_0 => q4_0(quants, x),
                    Quants::WideQ4_0 => wide(quants, x, x.offset, i32::from),
                    Quants::Q8_0 => q8_0(quants, x),
                };
                for ((sum, dot), scale) in sums.iter_mut().zip(dots).zip(scales) {
                    *sum += dot as f32 * (scale.to_f32() * x.scale);
                }
            }
        }
    }

    fn multiply_adds(&self, rounds: usize) -> usize {
        // This is slow enough that fewer rounds take as long.
        let rounds = rounds.div_ceil(64);
        let quants = [1; PackedType::Q8_0.quant_bytes()];
        let x = QuantizedBlock { values: [1; BLOCK_COLS], ..QuantizedBlock::default() };
        for _ in 0..rounds {
            black_box(q8_0(black_box(&quants), black_box(&x)));
        }
        rounds * quants.len()
    }
}

/// Adding and taking away 1.5 * 2^23 leaves no bits for a fraction: rounds to nearest even.
const NO_FRACTION: f32 = 12_582_912.0;

fn quantize(x: &[f32; BLOCK_COLS]) -> QuantizedBlock {
    // As whole numbers, magnitudes are in the same order, and what is not a number is the largest.
    let largest = x.iter().fold(0, |largest, x| largest.max(x.abs().to_bits()));
    match scales_of(largest) {
        Err(scale) => QuantizedBlock { scale, ..QuantizedBlock::default() },
        Ok((scale, inverse)) => {
            let values = x.map(|x| ((x * inverse + NO_FRACTION) - NO_FRACTION) as i8);
            let mut sums = [0; 2];
            for pairs in values.as_chunks::<2>().0.as_chunks().0 {
                for (sum, [a, b]) in sums.iter_mut().zip::<&[[i8; 2]; 2]>(pairs) {
                    *sum += i16::from(*a) + i16::from(*b);
                }
            }
            QuantizedBlock::new(values, scale, sums)
        }
    }
}

/// Dot products of a block of quants, a row each, and activations.
fn q4_0(quants: &[u8], x: &QuantizedBlock) -> [i32; TILE_ROWS] {
    let mut dots = [x.offset; TILE_ROWS];
    let (low, high) = x.values.split_at(BLOCK_COLS / 2);
    let x = low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0);
    for (rows, (low, high)) in quants.as_chunks::<{ 4 * TILE_ROWS }>().0.iter().zip(x) {
        for (dot, row) in dots.iter_mut().zip(rows.as_chunks::<4>().0) {
            for i in 0..4 {
                *dot += i32::from(row[i] & 15) * i32::from(low[i]);
                *dot += i32::from(row[i] >> 4) * i32::from(high[i]);
            }
        }
    }
    dots
}

/// As [`q4_0`].
fn q8_0(quants: &[u8], x: &QuantizedBlock) -> [i32; TILE_ROWS] {
    wide(quants, x, 0, |quant| i32::from(quant.cast_signed()))
}

/// As [`q4_0`], of quants with a byte each, which `decode` knows; sums begin at `start`.
#[inline(always)]
fn wide(
    quants: &[u8],
    x: &QuantizedBlock,
    start: i32,
    decode: impl Fn(u8) -> i32,
) -> [i32; TILE_ROWS] {
    let mut dots = [start; TILE_ROWS];
    let groups = quants.as_chunks::<{ 4 * TILE_ROWS }>().0;
    for (rows, x) in groups.iter().zip(x.values.as_chunks::<4>().0) {
        for (dot, row) in dots.iter_mut().zip(rows.as_chunks::<4>().0) {
            for i in 0..4 {
                *dot += decode(row[i]) * i32::from(x[i]);
            }
        }
    }
    dots
}
