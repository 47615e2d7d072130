//! One output, written by several threads at once in parts that do not overlap.
//!
//! The parts of a tile of a matrix product are strided, so they cannot be had by splitting a slice.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use crate::prefetch::prefetch_for_writing;

/// A slice that hands out parts for writing through a shared reference.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out only under the contract of `part`, which makes them the only access there is.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above; it is a borrowed `&mut [T]` in all but type.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// Has the `len` items from `start` on brought to the core's cache, to be written soon.
    pub(crate) fn expect(&self, start: usize, len: usize) {
        prefetch_for_writing(self.start.wrapping_add(start), len);
    }

    /// The `len` items from `start` on, for writing.
    ///
    /// # Safety
    /// No two parts that overlap may be alive at the same time.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{len} from {start} of {}", self.len);
        // SAFETY: the part lies within the borrowed slice, and the caller promises that nothing else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
