//! Numbers that are lent to a device.

use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

use tandem_memory::Element;

use crate::cl::Buffer;
use crate::memory::Place;

/// Numbers that are lent to a device for reading.
#[derive(Clone, Debug)]
pub struct Region<'scope, T> {
    pub(super) place: Place,
    pub(super) len: usize,
    pub(super) lent: PhantomData<&'scope T>,
}

impl<'scope> Region<'scope, u8> {
    /// The same bytes as numbers.
    ///
    /// # Panics
    /// When they are no whole number of those, or do not begin where such numbers may.
    #[must_use]
    pub fn cast<T: Element>(&self) -> Region<'scope, T> {
        let (Place::Pointer(start) | Place::Buffer(_, start)) = &self.place;
        let fits = start.is_multiple_of(size_of::<T>()) && self.len.is_multiple_of(size_of::<T>());
        assert!(fits, "{} bytes at {start} are no numbers of {}", self.len, size_of::<T>());
        Region { place: self.place.clone(), len: self.len / size_of::<T>(), lent: PhantomData }
    }
}

impl<T: Element> Region<'_, T> {
    /// The first `len` numbers of a buffer of the device's own. Whoever makes it answers for the buffer's owner being
    /// borrowed for the scope, and for the numbers being there.
    pub(crate) fn of_buffer(buffer: &Arc<Buffer>, len: usize) -> Self {
        Self { place: Place::Buffer(Arc::clone(buffer), 0), len, lent: PhantomData }
    }

    /// Whether both are the same numbers in memory.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let same = match (&self.place, &other.place) {
            (Place::Pointer(a), Place::Pointer(b)) => a == b,
            (Place::Buffer(a, at), Place::Buffer(b, also)) => Arc::ptr_eq(a, b) && at == also,
            _ => false,
        };
        same && self.len == other.len
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// When the range is out of bounds.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let skipped = range.start * size_of::<T>();
        let place = match &self.place {
            Place::Pointer(start) => Place::Pointer(start + skipped),
            Place::Buffer(buffer, offset) => Place::Buffer(Arc::clone(buffer), offset + skipped),
        };
        Self { place, len: range.len(), lent: PhantomData }
    }
}

/// Numbers that are lent to a device for reading and writing.
#[derive(Clone, Debug)]
pub struct RegionMut<'scope, T>(pub(super) Region<'scope, T>);

impl<T: Element> RegionMut<'_, T> {
    /// Some of them.
    ///
    /// # Panics
    /// When the range is out of bounds.
    #[must_use]
    pub fn slice_mut(&self, range: Range<usize>) -> Self {
        Self(self.0.slice(range))
    }
}

impl<'scope, T> Deref for RegionMut<'scope, T> {
    type Target = Region<'scope, T>;

    fn deref(&self) -> &Region<'scope, T> {
        &self.0
    }
}
