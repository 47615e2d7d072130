//! Keys and values as they are stored, read as vectors of f32.

use half::f16;
use tandem_memory::KV_BLOCK;

use super::super::lanes::Lanes;
use crate::prefetch::prefetch;

/// Stored numbers that a kernel reads. Positions count numbers.
///
/// # Safety
/// For all functions: the machine must have the instructions of the vector, and what is read must lie within the
/// numbers. A vector must not cross from one block of [`KV_BLOCK`] numbers, counted from the first, into the next.
pub(super) trait Stored: Copy {
    /// A vector of numbers.
    unsafe fn load<L: Lanes>(self, at: usize) -> L;

    /// One number.
    unsafe fn get(self, at: usize) -> f32;

    /// Asks for what follows a block's numbers in memory.
    unsafe fn prefetch(self, at: usize);
}

#[derive(Clone, Copy)]
pub(super) struct F32(pub(super) *const f32);

impl Stored for F32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(self, at: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(self.0.add(at)) }
    }

    #[inline(always)]
    unsafe fn get(self, at: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(at) }
    }

    #[inline(always)]
    unsafe fn prefetch(self, at: usize) {
        // SAFETY: the caller's promise.
        prefetch(unsafe { &*self.0.add(at).cast::<[f32; KV_BLOCK]>() });
    }
}

#[derive(Clone, Copy)]
pub(super) struct F16(pub(super) *const f16);

impl Stored for F16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(self, at: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(self.0.add(at)) }
    }

    #[inline(always)]
    unsafe fn get(self, at: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(at) }.to_f32()
    }

    #[inline(always)]
    unsafe fn prefetch(self, at: usize) {
        // SAFETY: the caller's promise.
        prefetch(unsafe { &*self.0.add(at).cast::<[f16; KV_BLOCK]>() });
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0 {
    pub(super) quants: *const i8,
    pub(super) scales: *const f16,
}

impl Stored for Q8_0 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(self, at: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = L::splat_f16(*self.scales.add(at / KV_BLOCK));
            L::load_i8(self.quants.add(at)).mul(scale)
        }
    }

    #[inline(always)]
    unsafe fn get(self, at: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { f32::from(*self.quants.add(at)) * (*self.scales.add(at / KV_BLOCK)).to_f32() }
    }

    #[inline(always)]
    unsafe fn prefetch(self, at: usize) {
        // SAFETY: the caller's promise.
        prefetch(unsafe { &*self.quants.add(at).cast::<[i8; KV_BLOCK]>() });
    }
}
