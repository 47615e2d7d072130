//! x86-64 with AVX2, FMA and F16C.
//!
//! `vpmaddubsw` multiplies unsigned with signed bytes and adds neighbours into 16 bits, with saturation; `vpmaddwd`
//! then adds those into 32 bits. What saves time is to do the second step seldom:
//!
//! - q4_0: quants are from -8 to 7, so a lane of 16 bits holds the sum of all 8 groups of a block: `8 * 2 * 8 * 127 =
//!   16256`. One `vpmaddwd` a block. The sum starts at what makes up for the offset of 8 that quants have while they are
//!   multiplied; on the way it may go beyond 16 bits and comes back.
//! - q8_0: quants are signed, so their signs are moved to the activations. `|q| <= 128` and `|x| <= 127` give at most
//!   `2 * 128 * 127 = 32512`: nothing saturates, but there is no room to add, so every group takes a `vpmaddwd`.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use tandem_memory::packed::BLOCK_COLS;

use crate::prefetch::{AHEAD, prefetch};

use super::{
    CHAINS, FEW, PackedKernels, QuantizedBlock, Quants, Tile, TileScales, TileSums, Tokens,
    WIDE_BYTES, scales_of,
};

/// The packed kernels for machines with AVX2, FMA and F16C. A value is the proof that this machine has them.
#[derive(Clone, Copy)]
pub(in crate::isa) struct Avx2 {
    /// Keeps others from making one.
    _checked: (),
}

impl Avx2 {
    /// The kernels, if this machine can run them.
    pub(in crate::isa) fn new() -> Option<Self> {
        let available = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        available.then_some(Self { _checked: () })
    }
}

impl PackedKernels for Avx2 {
    fn quantize(&self, x: &[f32], out: &mut [QuantizedBlock]) {
        let (x, rest) = x.as_chunks::<BLOCK_COLS>();
        assert!(rest.is_empty() && x.len() == out.len(), "activations of {} blocks", out.len());
        for (x, out) in x.iter().zip(out) {
            // SAFETY: `self` exists, so the machine has the instructions.
            *out = unsafe { quantize(x) };
        }
    }

    fn batch(&self) -> usize {
        4
    }

    fn widen(&self, quants: &[u8], out: &mut [u8]) {
        // SAFETY: `self` exists, so the machine has the instructions.
        unsafe { widen(quants, out) }
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

/// The plain loop, compiled with these instructions.
#[target_feature(enable = "avx2,fma,f16c")]
fn widen(quants: &[u8], out: &mut [u8]) {
    super::widen(quants, out);
}

/// As the plain one, to the last bit.
#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(x: &[f32; BLOCK_COLS]) -> QuantizedBlock {
    // SAFETY: each vector is 8 of the 32 numbers.
    let x: [__m256; 4] = std::array::from_fn(|n| unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * n)) });
    let magnitude = |x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX));
    let [a, b, c, d] = x.map(magnitude);
    let largest = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
    match scales_of(largest_lane(largest)) {
        Err(scale) => QuantizedBlock { scale, ..QuantizedBlock::default() },
        Ok((scale, inverse)) => {
            let inverse = _mm256_set1_ps(inverse);
            let [a, b, c, d] = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
            // Packing works within halves of vectors: groups of 4 come out as 0 2 4 6, 1 3 5 7.
            let packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let packed = _mm256_permutevar8x32_epi32(packed, order);
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), packed);
            let mut values = [0; BLOCK_COLS];
            // SAFETY: `values` is 32 bytes.
            unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), packed) };
            QuantizedBlock::new(values, scale, sum_lanes(pairs))
        }
    }
}

/// The largest of lanes that are not negative.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn largest_lane(v: __m256i) -> u32 {
    let v = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b0100_1110>(v));
    let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b1011_0001>(v));
    _mm_cvtsi128_si32(v).cast_unsigned()
}

/// The sums of the even lanes and of the odd ones.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum_lanes(v: __m256i) -> [i16; 2] {
    let v = _mm_add_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_add_epi16(v, _mm_shuffle_epi32::<0b0100_1110>(v));
    let both = _mm_cvtsi128_si32(_mm_add_epi16(v, _mm_shuffle_epi32::<0b1011_0001>(v)));
    [both as i16, (both >> 16) as i16]
}

/// Sums of `T` tokens.
///
/// # Safety
/// Every token must have as many blocks as the tile.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<const T: usize>(
    tile: Tile<'_>,
    x: &[&[QuantizedBlock]; T],
    [sums]: [&mut [TileSums; T]; 1],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.kind {
            Quants::Q4_0 => blocks(tile, x, sums, |quants, x| whole_dots_q4_0(quants, x)),
            Quants::WideQ4_0 => blocks(tile, x, sums, |quants, x| whole_dots_wide(quants, x)),
            Quants::Q8_0 => blocks(tile, x, sums, |quants, x| whole_dots_q8_0(quants, x)),
        }
    }
}

/// Adds up blocks of `BYTES` bytes of quants, whose whole dot products `dots` knows: for each token two vectors of 8
/// rows.
///
/// # Safety
/// Every token must have as many blocks as the tile.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn blocks<const BYTES: usize, const T: usize>(
    tile: Tile<'_>,
    x: &[&[QuantizedBlock]; T],
    sums: &mut [TileSums; T],
    dots: impl Fn(&[u8; BYTES], [&QuantizedBlock; T]) -> [[__m256i; 2]; T],
) {
    // They stay in the first-level cache: registers are too few.
    sums.fill(TileSums::default());
    let quants = tile.quants.as_chunks::<BYTES>().0;
    for (b, (quants, scales)) in quants.iter().zip(tile.scales).enumerate() {
        // SAFETY: `b` counts blocks, and the caller promises that every token has as many.
        let x: [&QuantizedBlock; T] = std::array::from_fn(|t| unsafe { x[t].get_unchecked(b) });
        // More tokens leave the memory time to look ahead by itself.
        if T <= FEW {
            prefetch(quants, AHEAD);
            // Two blocks' scales are in one cache line.
            if b % 2 == 0 {
                prefetch(scales, AHEAD * size_of::<TileScales>() / BYTES);
            }
        }
        let dots = dots(quants, x);
        for (half, scales) in scales.as_chunks::<8>().0.iter().enumerate() {
            // SAFETY: these are 8 f16.
            let scales = _mm256_cvtph_ps(unsafe { _mm_loadu_si128(scales.as_ptr().cast()) });
            for t in 0..T {
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps(x[t].scale));
                let dot = _mm256_cvtepi32_ps(dots[t][half]);
                let sum = sums[t].as_chunks_mut::<8>().0[half].as_mut_ptr();
                // SAFETY: these are 8 numbers.
                unsafe { _mm256_storeu_ps(sum, _mm256_fmadd_ps(dot, scale, _mm256_loadu_ps(sum))) };
            }
        }
    }
}

/// A group of 4 values in every lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn group_of(x: &QuantizedBlock, group: usize) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(x.values.as_chunks::<4>().0[group].map(i8::cast_unsigned)))
}

/// Two numbers in turn in all lanes of 16 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn pairs_of([even, odd]: [i16; 2]) -> __m256i {
    _mm256_set1_epi32(i32::from(odd) << 16 | i32::from(even.cast_unsigned()))
}

/// A group of a block's quants: two vectors of 8 rows.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn quants_at<const BYTES: usize>(quants: &[u8; BYTES], group: usize) -> [__m256i; 2] {
    let bytes = quants.as_chunks::<64>().0[group].as_chunks::<32>().0;
    // SAFETY: these are 32 bytes each.
    std::array::from_fn(|half| unsafe { _mm256_loadu_si256(bytes[half].as_ptr().cast()) })
}

/// The low and the high half of each of some bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn nibbles(packed: [__m256i; 2]) -> [[__m256i; 2]; 2] {
    let mask = _mm256_set1_epi8(15);
    let high = packed.map(|q| _mm256_and_si256(_mm256_srli_epi16::<4>(q), mask));
    [packed.map(|q| _mm256_and_si256(q, mask)), high]
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn whole_dots_q4_0<const T: usize>(
    quants: &[u8; 256],
    x: [&QuantizedBlock; T],
) -> [[__m256i; 2]; T] {
    let mut sums = x.map(|x| [pairs_of(x.halves); 2]);
    for group in 0..4 {
        for (n, q) in nibbles(quants_at(quants, group)).into_iter().enumerate() {
            add_group(&mut sums, q, x, group + 4 * n);
        }
    }
    whole(sums)
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn whole_dots_wide<const T: usize>(
    quants: &[u8; WIDE_BYTES],
    x: [&QuantizedBlock; T],
) -> [[__m256i; 2]; T] {
    let mut sums = x.map(|x| [pairs_of(x.halves); 2]);
    for group in 0..8 {
        add_group(&mut sums, quants_at(quants, group), x, group);
    }
    whole(sums)
}

/// Adds the products of a group of quants that are not negative, in 16 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_group<const T: usize>(
    sums: &mut [[__m256i; 2]; T],
    q: [__m256i; 2],
    x: [&QuantizedBlock; T],
    group: usize,
) {
    for t in 0..T {
        let x = group_of(x[t], group);
        for half in 0..2 {
            let products = _mm256_maddubs_epi16(q[half], x);
            sums[t][half] = _mm256_add_epi16(sums[t][half], products);
        }
    }
    in_this_order!(ymm_reg, sums);
}

/// Adds up the pairs of 16 bits.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn whole<const T: usize>(mut sums: [[__m256i; 2]; T]) -> [[__m256i; 2]; T] {
    for sum in sums.as_flattened_mut() {
        *sum = _mm256_madd_epi16(*sum, _mm256_set1_epi16(1));
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn whole_dots_q8_0<const T: usize>(
    quants: &[u8; 512],
    x: [&QuantizedBlock; T],
) -> [[__m256i; 2]; T] {
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    for group in 0..8 {
        let q = quants_at(quants, group);
        let magnitudes = q.map(|q| _mm256_abs_epi8(q));
        for t in 0..T {
            let x = group_of(x[t], group);
            for half in 0..2 {
                let signed = _mm256_sign_epi8(x, q[half]);
                let pairs = _mm256_maddubs_epi16(magnitudes[half], signed);
                sums[t][half] = _mm256_add_epi32(sums[t][half], _mm256_madd_epi16(pairs, ones));
            }
        }
        in_this_order!(ymm_reg, sums);
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_adds(rounds: usize) -> usize {
    let ones = std::hint::black_box(_mm256_set1_epi8(1));
    let mut sums = [std::hint::black_box(_mm256_setzero_si256()); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(ones, *sum));
        }
    }
    std::hint::black_box(sums);
    rounds * CHAINS * size_of::<__m256i>()
}
