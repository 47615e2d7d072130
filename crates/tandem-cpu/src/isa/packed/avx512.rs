//! x86-64 with AVX-512 and its VNNI: servers, and AMD's processors since Zen 4.
//!
//! As AVX-VNNI, with all 16 rows of a tile in one vector, and registers for two tiles and 6 tokens: the processor loads two
//! vectors a cycle and adds up two, so a number that is loaded has to be used more than once.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::prefetch::{AHEAD, prefetch};

use super::avx2::Avx2;
use super::{
    CHAINS, PackedKernels, QuantizedBlock, Quants, Tile, TileScales, TileSums, Tokens, WIDE_BYTES,
};

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

    fn widen(&self, quants: &[u8], out: &mut [u8]) {
        self.avx2.widen(quants, out);
    }

    fn batch(&self) -> usize {
        6
    }

    fn tile_dots(&self, tile: Tile<'_>, mut tokens: Tokens<'_, '_, 1>) {
        // SAFETY: `self` exists, so the machine has the instructions; of `Tokens` it is known that the number of
        // blocks is right.
        unsafe { in_batches!(tokens, [tile], dots, 8, 7, 6, 5, 4, 3, 2, 1) }
    }

    fn pair_dots(&self, tiles: [Tile<'_>; 2], mut tokens: Tokens<'_, '_, 2>) {
        // SAFETY: as in `tile_dots`.
        unsafe { in_batches!(tokens, tiles, dots, 6, 5, 4, 3, 2, 1) }
    }

    fn multiply_adds(&self, rounds: usize) -> usize {
        // SAFETY: `self` exists, so the machine has the instructions.
        unsafe { multiply_adds(rounds) }
    }
}

/// Sums of `T` tokens for `N` tiles.
///
/// # Safety
/// All tiles and tokens must have the same number of blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn dots<const N: usize, const T: usize>(
    tiles: [Tile<'_>; N],
    x: &[&[QuantizedBlock]; T],
    sums: [&mut [TileSums; T]; N],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tiles[0].kind {
            Quants::Q4_0 => blocks(tiles, x, sums, |quants, x| whole_dots_q4_0(quants, x)),
            Quants::WideQ4_0 => blocks(tiles, x, sums, |quants, x| whole_dots_wide(quants, x)),
            Quants::Q8_0 => blocks(tiles, x, sums, |quants, x| whole_dots_q8_0(quants, x)),
        }
    }
}

/// Adds up blocks of `BYTES` bytes of quants, whose whole dot products `dots` knows: a vector of 16 rows for each tile and
/// token.
///
/// # Safety
/// All tiles and tokens must have the same number of blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn blocks<const BYTES: usize, const N: usize, const T: usize>(
    tiles: [Tile<'_>; N],
    x: &[&[QuantizedBlock]; T],
    sums: [&mut [TileSums; T]; N],
    dots: impl Fn([&[u8; BYTES]; N], [&QuantizedBlock; T]) -> [[__m512i; T]; N],
) {
    let mut acc = [[_mm512_setzero_ps(); T]; N];
    let quants: [_; N] = std::array::from_fn(|n| tiles[n].quants.as_chunks::<BYTES>().0);
    for b in 0..tiles[0].scales.len() {
        // SAFETY: `b` counts blocks, and the caller promises that every tile and every token has as many.
        let (quants, scales, x): ([_; N], [_; N], [_; T]) = unsafe {
            (
                std::array::from_fn(|n| quants[n].get_unchecked(b)),
                std::array::from_fn(|n| tiles[n].scales.get_unchecked(b)),
                std::array::from_fn(|t| x[t].get_unchecked(b)),
            )
        };
        // One tile at a time comes from memory.
        if N == 1 {
            for n in 0..N {
                prefetch(quants[n], AHEAD);
                // Two blocks' scales are in one cache line.
                if b % 2 == 0 {
                    prefetch(scales[n], AHEAD * size_of::<TileScales>() / BYTES);
                }
            }
        }
        let dots = dots(quants, x);
        for n in 0..N {
            // SAFETY: a block's scales are 16 f16.
            let scales = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales[n].as_ptr().cast()) });
            for t in 0..T {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x[t].scale));
                acc[n][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[n][t]), scale, acc[n][t]);
            }
        }
    }
    for n in 0..N {
        for t in 0..T {
            // SAFETY: a token's sums are 16 numbers.
            unsafe { _mm512_storeu_ps(sums[n][t].as_mut_ptr(), acc[n][t]) };
        }
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
fn whole_dots_q4_0<const N: usize, const T: usize>(
    quants: [&[u8; 256]; N],
    x: [&QuantizedBlock; T],
) -> [[__m512i; T]; N] {
    let mask = _mm512_set1_epi8(15);
    let mut sums = [x.map(|x| _mm512_set1_epi32(x.offset)); N];
    for group in 0..4 {
        let packed = quants.map(|quants| quants_at(quants, group));
        let low = packed.map(|q| _mm512_and_si512(q, mask));
        let high = packed.map(|q| _mm512_and_si512(_mm512_srli_epi16::<4>(q), mask));
        add_group(&mut sums, low, x, group);
        add_group(&mut sums, high, x, group + 4);
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn whole_dots_wide<const N: usize, const T: usize>(
    quants: [&[u8; WIDE_BYTES]; N],
    x: [&QuantizedBlock; T],
) -> [[__m512i; T]; N] {
    wide_dots(quants, x, 1, |q| q)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn whole_dots_q8_0<const N: usize, const T: usize>(
    quants: [&[u8; WIDE_BYTES]; N],
    x: [&QuantizedBlock; T],
) -> [[__m512i; T]; N] {
    let flip = _mm512_set1_epi8(i8::MIN);
    wide_dots(quants, x, 16, |q| _mm512_xor_si512(q, flip))
}

/// Of quants with a byte each, that `unsigned` gives an offset of 8 times `offsets`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn wide_dots<const N: usize, const T: usize>(
    quants: [&[u8; WIDE_BYTES]; N],
    x: [&QuantizedBlock; T],
    offsets: i32,
    unsigned: impl Fn(__m512i) -> __m512i,
) -> [[__m512i; T]; N] {
    let mut sums = [x.map(|x| _mm512_set1_epi32(offsets * x.offset)); N];
    for group in 0..8 {
        let q = quants.map(|quants| unsigned(quants_at(quants, group)));
        add_group(&mut sums, q, x, group);
    }
    sums
}

/// Adds the products of a group of quants.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn add_group<const N: usize, const T: usize>(
    sums: &mut [[__m512i; T]; N],
    q: [__m512i; N],
    x: [&QuantizedBlock; T],
    group: usize,
) {
    for t in 0..T {
        let x = group_of(x[t], group);
        for n in 0..N {
            sums[n][t] = _mm512_dpbusd_epi32(sums[n][t], q[n], x);
        }
    }
    in_this_order!(zmm_reg, sums);
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
