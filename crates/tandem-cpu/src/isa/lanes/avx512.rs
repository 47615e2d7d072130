//! Sixteen numbers in a vector of AVX-512.

use std::arch::x86_64::*;

use half::f16;

use super::{Lanes, SUMS};

impl Lanes for __m512 {
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller's promise, here and below.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(x.to_bits().cast_signed())) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_sub_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(self, factor, term) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_max_ps(self, other) }
    }

    /// As on AVX2, but for an instruction that multiplies by a power of 2, whatever it comes to.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        use super::super::avx2::exp_constants::*;

        // SAFETY: as above. NaN passes: the second operand wins where one is NaN.
        unsafe {
            let x = _mm512_max_ps(_mm512_set1_ps(LOWEST), self);
            let n = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
            let mut p = _mm512_set1_ps(COEFFICIENTS[0]);
            for c in &COEFFICIENTS[1..] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
            }
            _mm512_scalef_ps(p, n)
        }
    }

    #[inline(always)]
    unsafe fn sums(of: [Self; SUMS]) -> [f32; SUMS] {
        // SAFETY: as above.
        unsafe {
            let mut halves = [_mm256_setzero_ps(); SUMS];
            for (half, v) in halves.iter_mut().zip(of) {
                let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v));
                *half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(high));
            }
            <__m256 as Lanes>::sums(halves)
        }
    }
}
