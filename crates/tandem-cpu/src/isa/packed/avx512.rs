//! x86-64 with AVX-512 and its VNNI: servers, and AMD's processors since Zen 4.
//!
//! As AVX-VNNI, with all 16 rows of a tile in one vector, and registers for 8 tokens.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use tandem_memory::PackedType;

use crate::prefetch::{AHEAD, prefetch};

use super::avx2::Avx2;
use super::{CHAINS, PackedKernels, QuantizedBlock, Tile, TileScales, TileSums, Tokens};

/// The packed kernels for machines with AVX-512 VNNI. A value is the proof that this machine has it.
pub(in crate::isa) struct Avx512 {
    avx2: Avx2,
}

impl Avx512 {
    /// The kernels, if this machine can run them.
    pub(in crate::isa) fn new() -> Option<Self> {
        let avx2 = Avx2::new()?;
        let available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni");
        available.then_some(Self { avx2 })
    }
}

impl PackedKernels for Avx512 {
    fn quantize(&self, x: &[f32], out: &mut [QuantizedBlock]) {
        self.avx2.quantize(x, out);
    }

    fn tile_dots(&self, tile: Tile<'_>, mut tokens: Tokens<'_, '_>) {
        // SAFETY: `self` exists, so the machine has the instructions; of `Tokens` it is known that the number of
        // blocks is right.
        unsafe { in_batches!(tokens, tile, dots, 8, 4, 2, 1) }
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
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn dots<const T: usize>(
    tile: Tile<'_>,
    x: &[&[QuantizedBlock]; T],
    sums: &mut [TileSums; T],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.kind {
            PackedType::Q4_0 => {
                blocks(tile.quants, tile.scales, x, sums, |quants, x| whole_dots_q4_0(quants, x))
            }
            PackedType::Q8_0 => {
                blocks(tile.quants, tile.scales, x, sums, |quants, x| whole_dots_q8_0(quants, x))
            }
        }
    }
}

/// Adds up blocks of `BYTES` bytes of quants, whose whole dot products `dots` knows: a vector of 16 rows a token.
///
/// # Safety
/// Every token must have as many blocks as there are scales.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn blocks<const BYTES: usize, const T: usize>(
    quants: &[u8],
    scales: &[TileScales],
    x: &[&[QuantizedBlock]; T],
    sums: &mut [TileSums; T],
    dots: impl Fn(&[u8; BYTES], [&QuantizedBlock; T]) -> [__m512i; T],
) {
    // SAFETY: a token's sums are 16 numbers.
    let mut acc: [__m512; T] =
        std::array::from_fn(|t| unsafe { _mm512_loadu_ps(sums[t].as_ptr()) });
    for (b, (quants, scales)) in quants.as_chunks::<BYTES>().0.iter().zip(scales).enumerate() {
        // SAFETY: `b` counts blocks, and the caller promises that every token has as many.
        let x: [&QuantizedBlock; T] = std::array::from_fn(|t| unsafe { x[t].get_unchecked(b) });
        // 8-bit quants leave little to compute: there it makes no difference.
        if T <= 2 && BYTES == PackedType::Q4_0.quant_bytes() {
            prefetch(quants, AHEAD);
            // Two blocks' scales are in one cache line.
            if b % 2 == 0 {
                prefetch(scales, AHEAD * size_of::<TileScales>() / BYTES);
            }
        }
        let dots = dots(quants, x);
        // SAFETY: a block's scales are 16 f16.
        let scales = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) });
        for t in 0..T {
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x[t].scale));
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, acc[t]);
        }
    }
    for t in 0..T {
        // SAFETY: as where they were loaded.
        unsafe { _mm512_storeu_ps(sums[t].as_mut_ptr(), acc[t]) };
    }
}

/// A group of 4 values in every lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn group_of(x: &QuantizedBlock, group: usize) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes(x.values.as_chunks::<4>().0[group].map(i8::cast_unsigned)))
}

/// A group of a block's quants.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn quants_at<const BYTES: usize>(quants: &[u8; BYTES], group: usize) -> __m512i {
    let bytes = &quants.as_chunks::<64>().0[group];
    // SAFETY: these are 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn whole_dots_q4_0<const T: usize>(quants: &[u8; 256], x: [&QuantizedBlock; T]) -> [__m512i; T] {
    let mask = _mm512_set1_epi8(15);
    let mut sums = x.map(|x| _mm512_set1_epi32(x.offset));
    for group in 0..4 {
        let packed = quants_at(quants, group);
        let low = _mm512_and_si512(packed, mask);
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
        for t in 0..T {
            sums[t] = _mm512_dpbusd_epi32(sums[t], low, group_of(x[t], group));
            sums[t] = _mm512_dpbusd_epi32(sums[t], high, group_of(x[t], group + 4));
        }
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn whole_dots_q8_0<const T: usize>(quants: &[u8; 512], x: [&QuantizedBlock; T]) -> [__m512i; T] {
    let flip = _mm512_set1_epi8(i8::MIN);
    let mut sums = x.map(|x| _mm512_set1_epi32(16 * x.offset));
    for group in 0..8 {
        let q = _mm512_xor_si512(quants_at(quants, group), flip);
        for t in 0..T {
            sums[t] = _mm512_dpbusd_epi32(sums[t], q, group_of(x[t], group));
        }
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_adds(rounds: usize) -> usize {
    let ones = std::hint::black_box(_mm512_set1_epi8(1));
    let mut sums = [std::hint::black_box(_mm512_setzero_si512()); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, ones, ones);
        }
    }
    std::hint::black_box(sums);
    rounds * CHAINS * size_of::<__m512i>()
}
