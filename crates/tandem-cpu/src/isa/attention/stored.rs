//! Keys and values as they are stored, read as vectors of f32.

use half::f16;
use tandem_memory::KV_BLOCK;

use super::super::lanes::Lanes;
use crate::prefetch::{AHEAD, prefetch};

/// Stored numbers that a kernel reads. Positions count numbers.
///
/// # Safety
/// For all unsafe functions: the machine must have the instructions of the vector, and what is read must lie within the
/// numbers.
pub(super) trait Stored: Copy {
    /// What the numbers of a block are multiplied with; nothing where they are whole.
    type Scale<L: Lanes>: Copy;

    /// The scale of the block that a number is in.
    unsafe fn scale<L: Lanes>(self, at: usize) -> Self::Scale<L>;

    /// A vector of numbers of one block.
    unsafe fn load<L: Lanes>(self, at: usize, scale: Self::Scale<L>) -> L;

    /// One number.
    unsafe fn get(self, at: usize) -> f32;

    /// Asks for what follows [`KV_BLOCK`] numbers in memory, which need not be there.
    fn prefetch(self, at: usize);
}

#[derive(Clone, Copy)]
pub(super) struct F32(pub(super) *const f32);

impl Stored for F32 {
    type Scale<L: Lanes> = ();

    #[inline(always)]
    unsafe fn scale<L: Lanes>(self, _at: usize) {}

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, at: usize, (): ()) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(self.0.add(at)) }
    }

    #[inline(always)]
    unsafe fn get(self, at: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(at) }
    }

    #[inline(always)]
    fn prefetch(self, at: usize) {
        prefetch(self.0.wrapping_add(at).cast::<[f32; KV_BLOCK]>(), AHEAD);
    }
}

#[derive(Clone, Copy)]
pub(super) struct F16(pub(super) *const f16);

impl Stored for F16 {
    type Scale<L: Lanes> = ();

    #[inline(always)]
    unsafe fn scale<L: Lanes>(self, _at: usize) {}

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, at: usize, (): ()) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(self.0.add(at)) }
    }

    #[inline(always)]
    unsafe fn get(self, at: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.0.add(at) }.to_f32()
    }

    #[inline(always)]
    fn prefetch(self, at: usize) {
        prefetch(self.0.wrapping_add(at).cast::<[f16; KV_BLOCK]>(), AHEAD);
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0 {
    pub(super) quants: *const i8,
    pub(super) scales: *const f16,
}

impl Stored for Q8_0 {
    type Scale<L: Lanes> = L;

    #[inline(always)]
    unsafe fn scale<L: Lanes>(self, at: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::splat_f16(*self.scales.add(at / KV_BLOCK)) }
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(self, at: usize, scale: L) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_i8(self.quants.add(at)).mul(scale) }
    }

    #[inline(always)]
    unsafe fn get(self, at: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { f32::from(*self.quants.add(at)) * (*self.scales.add(at / KV_BLOCK)).to_f32() }
    }

    #[inline(always)]
    fn prefetch(self, at: usize) {
        prefetch(self.quants.wrapping_add(at).cast::<[i8; KV_BLOCK]>(), AHEAD);
    }
}
