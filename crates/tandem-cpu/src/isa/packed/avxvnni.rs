//! x86-64 with AVX-VNNI: laptops since 2021, with efficiency cores too.
//!
//! `vpdpbusd` multiplies 4 unsigned with 4 signed bytes and adds all of it to a lane of 32 bits: a group of a row in
//! one instruction. Signed quants of q8_0 become unsigned by adding 128, which the sum starts 128 times the
//! activations' sum below zero to make up for.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::avx2::{self, Avx2, group_of, nibbles, quants_at};
use super::{CHAINS, PackedKernels, QuantizedBlock, Quants, Tile, TileSums, Tokens, WIDE_BYTES};

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

    fn widen(&self, quants: &[u8], out: &mut [u8]) {
        self.avx2.widen(quants, out);
    }

    fn batch(&self) -> usize {
        self.avx2.batch()
    }

    fn tile_dots(&self, tile: Tile<'_>, mut tokens: Tokens<'_, '_, 1>) {
        // SAFETY: `self` exists, so the machine has the instructions; of `Tokens` it is known that the number of
        // blocks is right.
        unsafe { in_batches!(tokens, tile, dots, 4, 3, 2, 1) }
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
    [sums]: [&mut [TileSums; T]; 1],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.kind {
            Quants::Q4_0 => avx2::blocks(tile, x, sums, |quants, x| whole_dots_q4_0(quants, x)),
            Quants::WideQ4_0 => avx2::blocks(tile, x, sums, |quants, x| whole_dots_wide(quants, x)),
            Quants::Q8_0 => avx2::blocks(tile, x, sums, |quants, x| whole_dots_q8_0(quants, x)),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn whole_dots_q4_0<const T: usize>(
    quants: &[u8; 256],
    x: [&QuantizedBlock; T],
) -> [[__m256i; 2]; T] {
    let mut sums = x.map(|x| [_mm256_set1_epi32(x.offset); 2]);
    for group in 0..4 {
        for (n, q) in nibbles(quants_at(quants, group)).into_iter().enumerate() {
            add_group(&mut sums, q, x, group + 4 * n);
        }
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn whole_dots_wide<const T: usize>(
    quants: &[u8; WIDE_BYTES],
    x: [&QuantizedBlock; T],
) -> [[__m256i; 2]; T] {
    wide_dots(quants, x, 1, |q| q)
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn whole_dots_q8_0<const T: usize>(
    quants: &[u8; WIDE_BYTES],
    x: [&QuantizedBlock; T],
) -> [[__m256i; 2]; T] {
    let flip = _mm256_set1_epi8(i8::MIN);
    wide_dots(quants, x, 16, |q| _mm256_xor_si256(q, flip))
}

/// Of quants with a byte each, that `unsigned` gives an offset of 8 times `offsets`.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn wide_dots<const T: usize>(
    quants: &[u8; WIDE_BYTES],
    x: [&QuantizedBlock; T],
    offsets: i32,
    unsigned: impl Fn(__m256i) -> __m256i,
) -> [[__m256i; 2]; T] {
    let mut sums = x.map(|x| [_mm256_set1_epi32(offsets * x.offset); 2]);
    for group in 0..8 {
        let q = quants_at(quants, group).map(&unsigned);
        add_group(&mut sums, q, x, group);
    }
    sums
}

/// Adds the products of a group of quants.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn add_group<const T: usize>(
    sums: &mut [[__m256i; 2]; T],
    q: [__m256i; 2],
    x: [&QuantizedBlock; T],
    group: usize,
) {
    for (sums, x) in sums.iter_mut().zip(x) {
        let x = group_of(x, group);
        for (sum, q) in sums.iter_mut().zip(q) {
            *sum = _mm256_dpbusd_avx_epi32(*sum, q, x);
        }
    }
    in_this_order!(ymm_reg, sums);
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
