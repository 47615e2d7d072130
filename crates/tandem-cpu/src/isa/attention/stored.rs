//! Keys and values as they are stored, read as vectors of f32.

use half::f16;
use tandem_memory::{KV_BLOCK, KvData};

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

    /// Asks for what will be read a while after [`KV_BLOCK`] numbers.
    fn prefetch(self, at: usize);
}

/// A run of memory, and what is read after it: the same heads' numbers in the next page lie elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    start: *const u8,
    /// From this byte on, what is asked for lies in the next run.
    turn: usize,
    /// The next run, less this one's bytes: the same sum finds what is asked for there.
    next: *const u8,
    distance: usize,
}

impl Ahead {
    /// Of stored numbers; `next` is where those begin that are read after them.
    pub(super) fn new(data: KvData<'_>, next: *const u8) -> Self {
        let bytes = data.n_bytes();
        // A run that is shorter than that must not have the next one's beginning left out.
        let distance = AHEAD.min(bytes);
        Self {
            start: data.start(),
            turn: bytes - distance,
            next: next.wrapping_sub(bytes),
            distance,
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: usize) {
        let base = if at < self.turn { self.start } else { self.next };
        prefetch(base.wrapping_add(at).cast::<T>(), self.distance);
    }
}

#[derive(Clone, Copy)]
pub(super) struct F32(pub(super) *const f32, pub(super) Ahead);

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
        self.1.prefetch::<[f32; KV_BLOCK]>(at * size_of::<f32>());
    }
}

#[derive(Clone, Copy)]
pub(super) struct F16(pub(super) *const f16, pub(super) Ahead);

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
        self.1.prefetch::<[f16; KV_BLOCK]>(at * size_of::<f16>());
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0 {
    pub(super) quants: *const i8,
    pub(super) scales: *const f16,
    pub(super) ahead: Ahead,
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
        self.ahead.prefetch::<[i8; KV_BLOCK]>(at);
    }
}
