//! Plain Rust: loops over 8 numbers, which a compiler turns into what vectors there are.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{Lanes, SUMS};

/// Eight numbers.
#[derive(Clone, Copy)]
pub(in crate::isa) struct Plain([f32; 8]);

impl Plain {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|n| f(self.0[n], other.0[n])))
    }
}

impl Lanes for Plain {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }

    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self {
        Self([x.to_f32(); 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        let mut out = [0.0; 8];
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(from, 8) }.convert_to_f32_slice(&mut out);
        Self(out)
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[i8; 8]>().read() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }

    /// With two roundings: machines without an instruction for one take hundreds of cycles for it.
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n] * factor.0[n] + term.0[n]))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.each(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        Self(self.0.map(f32::exp))
    }

    #[inline(always)]
    unsafe fn sums(of: [Self; SUMS]) -> [f32; SUMS] {
        of.map(|v| v.0.iter().sum())
    }
}
