//! x86-64 with AVX-VNNI: laptops since 2021, with efficiency cores too.
//!
//! `vpdpbusd` multiplies 4 unsigned with 4 signed bytes and adds all of it to a lane of 32 bits: a group of a row in
//! one instruction. Signed quants of q8_0 become unsigned by adding 128, which the sum starts 128 times the
//! activations' sum below zero to make up for.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use tandem_memory::PackedType;

use super::avx2::{self, Avx2, FEW, group_of, quants_at};
use super::{CHAINS, PackedKernels, QuantizedBlock, Tile, TileSums, Tokens};

/// The packed kernels for machines with AVX-VNNI. A value is the proof that this machine has it.
pub(in crate::isa) struct AvxVnni {
    avx2: Avx2,
}

impl AvxVnni {
    /// The kernels, if this machine can run them.
    pub(in crate::isa) fn new() -> Option<Self> {
        let avx2 = Avx2::new()?;
        is_x86_feature_detected!("avxvnni").then_some(Self { avx2 })
    }
}

impl PackedKernels for AvxVnni {
    fn quantize(&self, x: &[f32], out: &mut [QuantizedBlock]) {
        self.avx2.quantize(x, out);
    }

    fn tile_dots(&self, tile: Tile<'_>, mut tokens: Tokens<'_, '_>) {
        // SAFETY: `self` exists, so the machine has the instructions; of `Tokens` it is known that the number of
        // blocks is right.
        unsafe { in_batches!(tokens, tile, dots, 4, 2, 1) }
    }

    fn multiply_adds(&self, rounds: usize) -> usize {
        // SAFETY: `self` exists, so the machine has the instructions.
        unsafe { multiply_adds(rounds) }
    }
}

/// Sums of `T` tokens.
///
/// # Safety
/// Every token must have as many blocks as the tile.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn dots<const T: usize>(
    tile: Tile<'_>,
    x: &[&[QuantizedBlock]; T],
    sums: &mut [TileSums; T],
) {
    // SAFETY: the caller's promise.
    unsafe {
        if T <= FEW {
            halves::<T, 2>(tile, x, sums, 0);
        } else {
            halves::<T, 1>(tile, x, sums, 0);
            halves::<T, 1>(tile, x, sums, 1);
        }
    }
}

/// Sums of `T` tokens for `H` halves of the tile from the `first` on.
///
/// # Safety
/// Every token must have as many blocks as the tile.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
unsafe fn halves<const T: usize, const H: usize>(
    tile: Tile<'_>,
    x: &[&[QuantizedBlock]; T],
    sums: &mut [TileSums; T],
    first: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.kind {
            PackedType::Q4_0 => avx2::blocks(tile, x, sums, first, |quants, x| {
                whole_dots_q4_0::<T, H>(quants, x, first)
            }),
            PackedType::Q8_0 => avx2::blocks(tile, x, sums, first, |quants, x| {
                whole_dots_q8_0::<T, H>(quants, x, first)
            }),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn whole_dots_q4_0<const T: usize, const H: usize>(
    quants: &[u8; 256],
    x: [&QuantizedBlock; T],
    first: usize,
) -> [[__m256i; H]; T] {
    let mask = _mm256_set1_epi8(15);
    let mut sums: [[_; H]; T] = x.map(|x| [_mm256_set1_epi32(x.offset); H]);
    for group in 0..4 {
        let packed: [_; H] =
            std::array::from_fn(|half| quants_at(quants, 2 * group + first + half));
        let low = packed.map(|q| _mm256_and_si256(q, mask));
        let high = packed.map(|q| _mm256_and_si256(_mm256_srli_epi16::<4>(q), mask));
        for t in 0..T {
            for (q, x) in [(low, group_of(x[t], group)), (high, group_of(x[t], group + 4))] {
                for half in 0..H {
                    sums[t][half] = _mm256_dpbusd_avx_epi32(sums[t][half], q[half], x);
                }
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn whole_dots_q8_0<const T: usize, const H: usize>(
    quants: &[u8; 512],
    x: [&QuantizedBlock; T],
    first: usize,
) -> [[__m256i; H]; T] {
    let flip = _mm256_set1_epi8(i8::MIN);
    let mut sums: [[_; H]; T] = x.map(|x| [_mm256_set1_epi32(16 * x.offset); H]);
    for group in 0..8 {
        let q: [_; H] = std::array::from_fn(|half| {
            _mm256_xor_si256(quants_at(quants, 2 * group + first + half), flip)
        });
        for t in 0..T {
            let x = group_of(x[t], group);
            for half in 0..H {
                sums[t][half] = _mm256_dpbusd_avx_epi32(sums[t][half], q[half], x);
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn multiply_adds(rounds: usize) -> usize {
    let ones = std::hint::black_box(_mm256_set1_epi8(1));
    let mut sums = [std::hint::black_box(_mm256_setzero_si256()); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, ones, ones);
        }
    }
    std::hint::black_box(sums);
    rounds * CHAINS * size_of::<__m256i>()
}
