//! Vectors of f32, so that a kernel is written once for all instruction sets.
//!
//! A kernel is an `#[inline(always)]` function with a [`Lanes`] as parameter, called from functions that have the
//! instruction set's `target_feature`: only what is inlined there becomes its instructions. For that reason kernels
//! use loops, not closures, which would be functions without the feature.
//!
//! Every function of the trait is unsafe to call because the machine must have the instructions. Memory is given by
//! pointers: kernels check their slices first, and then no access is checked again.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod plain;

use half::f16;

pub(super) use plain::Plain;

/// How many sums [`Lanes::sums`] makes at a time.
pub(super) const SUMS: usize = 8;

/// A vector of f32.
///
/// # Safety
/// For all functions: the machine must have the instructions, and pointers must be good for [`Lanes::COUNT`] numbers.
pub(super) trait Lanes: Copy {
    /// Numbers of a vector: 8 or 16.
    const COUNT: usize;

    /// One number in every lane.
    unsafe fn splat(x: f32) -> Self;

    /// One f16 in every lane.
    unsafe fn splat_f16(x: f16) -> Self;

    unsafe fn load(from: *const f32) -> Self;

    unsafe fn load_f16(from: *const f16) -> Self;

    /// Whole numbers.
    unsafe fn load_i8(from: *const i8) -> Self;

    unsafe fn store(self, to: *mut f32);

    unsafe fn add(self, other: Self) -> Self;

    unsafe fn sub(self, other: Self) -> Self;

    unsafe fn mul(self, other: Self) -> Self;

    /// `self * factor + term`.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;

    unsafe fn max(self, other: Self) -> Self;

    /// The exponential function to within 2 units in the last place, for numbers up to 0. Below -87.3, where it would
    /// not be a normal number, it may be 0.
    unsafe fn exp(self) -> Self;

    /// Each vector's lanes added up.
    unsafe fn sums(of: [Self; SUMS]) -> [f32; SUMS];
}

/// Vectors that lie one after the other.
///
/// # Safety
/// As [`Lanes`], for `N` vectors.
#[inline(always)]
pub(super) unsafe fn load_all<L: Lanes, const N: usize>(from: *const f32) -> [L; N] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut vectors = [L::splat(0.0); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            *vector = L::load(from.add(n * L::COUNT));
        }
        vectors
    }
}

/// Stores vectors one after the other.
///
/// # Safety
/// As [`Lanes`], for `N` vectors.
#[inline(always)]
pub(super) unsafe fn store_all<L: Lanes, const N: usize>(vectors: [L; N], to: *mut f32) {
    for (n, vector) in vectors.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { vector.store(to.add(n * L::COUNT)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance from the exact result in units of the last place of an f32 there.
    fn ulps(got: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        let ulp = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
        (f64::from(got) - exact).abs() / ulp
    }

    /// # Safety
    /// The machine must have the instructions.
    unsafe fn exp<L: Lanes>(x: f32) -> f32 {
        let mut out = [0.0; 16];
        // SAFETY: the caller's promise; no vector is longer than 16.
        unsafe { L::splat(x).exp().store(out.as_mut_ptr()) };
        out[0]
    }

    fn check<L: Lanes>(available: bool) {
        if !available {
            return;
        }
        // SAFETY: the machine was found to have the instructions.
        let exp = |x| unsafe { exp::<L>(x) };
        let mut worst = 0f64;
        for i in 0..8_730_000 / 7 {
            let x = (7 * i) as f32 * -1e-5;
            worst = worst.max(ulps(exp(x), f64::from(x).exp()));
        }
        assert!(worst <= 2.0, "{worst} ulps");
        for x in [-87.4, -100.0, -1e10, f32::MIN, f32::NEG_INFINITY] {
            assert!((0.0..=f32::MIN_POSITIVE).contains(&exp(x)), "{x}");
        }
        assert_eq!([exp(0.0), exp(-0.0), exp(f32::NEG_INFINITY)], [1.0, 1.0, 0.0]);
        assert!(exp(f32::NAN).is_nan());

        let numbers: Vec<f32> = (0..SUMS * L::COUNT).map(|i| (i * i % 101) as f32).collect();
        let at = |n| numbers[n * L::COUNT..].as_ptr();
        // SAFETY: as above, and each of the vectors is within the numbers.
        let sums = unsafe { L::sums(std::array::from_fn(|n| L::load(at(n)))) };
        let expected: Vec<f32> = numbers.chunks(L::COUNT).map(|c| c.iter().sum()).collect();
        assert_eq!(sums[..], expected);
    }

    #[test]
    fn plain() {
        check::<Plain>(true);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vectors() {
        check::<std::arch::x86_64::__m256>(super::super::Isa::Avx2.is_available());
        check::<std::arch::x86_64::__m512>(super::super::Isa::Avx512.is_available());
    }
}
