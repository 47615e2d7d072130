//! Eight numbers in a vector of AVX2, with FMA and F16C.

use std::arch::x86_64::*;

use half::f16;

use super::super::avx2::exp;
use super::{Lanes, SUMS};

impl Lanes for __m256 {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(x.to_bits().cast_signed())) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_sub_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(self, factor, term) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_max_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: as above.
        unsafe { exp(self) }
    }

    #[inline(always)]
    unsafe fn sums([a, b, c, d, e, f, g, h]: [Self; SUMS]) -> [f32; SUMS] {
        let mut out = [0.0; SUMS];
        // Neighbours are added until each of the halves of two vectors has sums of four lanes of four vectors.
        // SAFETY: as above, and `out` is 8 numbers.
        unsafe {
            let [ab, cd] = [_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)];
            let [ef, gh] = [_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h)];
            let [low, high] = [_mm256_hadd_ps(ab, cd), _mm256_hadd_ps(ef, gh)];
            let swapped = _mm256_permute2f128_ps::<0x21>(low, high);
            let blended = _mm256_blend_ps::<0xf0>(low, high);
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(swapped, blended));
        }
        out
    }
}
