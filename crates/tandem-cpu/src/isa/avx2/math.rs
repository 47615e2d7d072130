//! The exponential function, and what is made of it.

use std::arch::x86_64::*;

use super::super::generic;

/// What the exponential function is made of, on AVX2 and beyond.
pub(in crate::isa) mod exp_constants {
    /// Below this the result is 0.
    pub(in crate::isa) const LOWEST: f32 = -104.0;
    /// ln 2 in two parts: the first has zeros at its end, so that `n` times it is exact.
    pub(in crate::isa) const LN2_HIGH: f32 = 0.693_359_4;
    pub(in crate::isa) const LN2_LOW: f32 = -2.121_944_4e-4;
    pub(in crate::isa) const COEFFICIENTS: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
}

/// `exp` of 8 numbers, to within 2 units in the last place.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `exp(r)` is its Taylor polynomial of degree 7, whose remainder is
/// below 2^-27 there. `2^n` is multiplied in as two factors, so that results may be denormal or infinite.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(in crate::isa) fn exp(x: __m256) -> __m256 {
    use exp_constants::*;

    // Beyond these the result is 0 or infinite. NaN passes: the second operand wins where one is NaN.
    let x = _mm256_max_ps(_mm256_set1_ps(LOWEST), x);
    let x = _mm256_min_ps(_mm256_set1_ps(89.0), x);
    let n = _mm256_mul_ps(x, _mm256_set1_ps(std::f32::consts::LOG2_E));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(n);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_HIGH), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN2_LOW), r);
    let mut p = _mm256_set1_ps(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    let power = |n| {
        let bits = _mm256_add_epi32(n, _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(bits))
    };
    let p = _mm256_mul_ps(p, power(half));
    _mm256_mul_ps(p, power(_mm256_sub_epi32(n, half)))
}

/// `gate = gate / (1 + exp(-gate)) * up`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    let (gates, gate_rest) = gate.as_chunks_mut::<8>();
    let (ups, up_rest) = up.as_chunks::<8>();
    let one = _mm256_set1_ps(1.0);
    for (gate, up) in gates.iter_mut().zip(ups) {
        // SAFETY: both are 8 numbers.
        let (g, u) = unsafe { (_mm256_loadu_ps(gate.as_ptr()), _mm256_loadu_ps(up.as_ptr())) };
        let e = exp(_mm256_xor_ps(g, _mm256_set1_ps(-0.0)));
        let silu = _mm256_div_ps(g, _mm256_add_ps(one, e));
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(gate.as_mut_ptr(), _mm256_mul_ps(silu, u)) };
    }
    generic::silu_mul(gate_rest, up_rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance from the exact result in units of the last place of an f32 there.
    fn ulps(got: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        if nearest.is_infinite() || got == nearest {
            return if got == nearest { 0.0 } else { f64::INFINITY };
        }
        let ulp = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
        (f64::from(got) - exact).abs() / ulp
    }

    /// `exp` of 8 numbers at a time, on a machine that has the instructions.
    fn exp_of(x: [f32; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        // SAFETY: both arrays are 8 numbers, and the tests look for the instructions before they come here.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), exp(_mm256_loadu_ps(x.as_ptr()))) };
        out
    }

    #[test]
    fn exp_is_within_two_ulps_everywhere() {
        if super::super::Avx2::new().is_none() {
            return;
        }
        let mut worst = 0f64;
        let mut check = |x: f32| {
            worst = worst.max(ulps(exp_of([x; 8])[0], f64::from(x).exp()));
        };
        // Every exponent and sign with many mantissas, and a fine grid over the range of finite results.
        (0..=u32::MAX)
            .step_by(65_521)
            .map(f32::from_bits)
            .filter(|x| !x.is_nan())
            .for_each(&mut check);
        (-1_050_000..900_000).step_by(7).map(|i| i as f32 * 1e-4).for_each(&mut check);
        assert!(worst <= 2.0, "{worst} ulps");
    }

    #[test]
    fn exp_of_special_numbers() {
        if super::super::Avx2::new().is_none() {
            return;
        }
        let x = exp_of([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e30, -1e30, 88.72]);
        assert!(x[0].is_nan());
        assert_eq!(x[1..7], [f32::INFINITY, 0.0, 1.0, 1.0, f32::INFINITY, 0.0]);
        assert!(x[7].is_finite());
    }
}
