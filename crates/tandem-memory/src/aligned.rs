//! Page-aligned, zeroed memory straight from the operating system.
//!
//! The weight store and the KV cache are allocations that a GPU may address in place. OpenCL drivers do that
//! without a hidden copy only where both the address and the size are aligned, so this buffer starts on a page
//! and ends on one. Anonymous pages come zeroed and are committed when first touched: a KV cache sized for a
//! long context costs nothing until the context grows.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Address and size of every buffer are multiples of this many bytes.
const PAGE: usize = 4096;

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum AllocError {
    /// The size does not fit the address space.
    #[error("cannot allocate {0} bytes: more than this machine can address")]
    TooLarge(usize),
    /// The operating system refused.
    #[error("cannot allocate {bytes} bytes: {source}")]
    Refused {
        /// Bytes asked for.
        bytes: usize,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

/// A plain number that any byte pattern is a valid value of.
///
/// Sealed: [`AlignedBuffer`]'s typed views rely on it.
pub trait Element: sealed::Sealed + Copy {}

mod sealed {
    /// Implemented only for numbers without padding or invalid bit patterns, aligned to at most a page.
    pub trait Sealed {}
}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(u8, i8, u16, u64, f32, half::f16, half::bf16);

/// Zeroed memory whose address and size are multiples of 4096 bytes.
///
/// Dereferences to the bytes asked for; [`capacity`](Self::capacity) says how many are really there.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its pages alone, and they are plain memory that any thread may use.
unsafe impl Send for AlignedBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// A buffer of `len` zero bytes, backed by whole pages (one at least).
    ///
    /// # Errors
    /// Says how many bytes were asked for where they cannot be had.
    pub fn zeroed(len: usize) -> Result<Self, AllocError> {
        let capacity = len
            .max(1)
            .checked_next_multiple_of(PAGE)
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or(AllocError::TooLarge(len))?;
        // SAFETY: an anonymous private mapping at an address of the system's choice touches no existing memory.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                capacity,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let refused =
            || AllocError::Refused { bytes: len, source: std::io::Error::last_os_error() };
        if start == libc::MAP_FAILED {
            return Err(refused());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(refused)?;
        Ok(Self { start, len, capacity })
    }

    /// Bytes that may be addressed from the buffer's start: its length rounded up to whole pages.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Asks for huge pages, which spare address translation when gigabytes are streamed.
    ///
    /// Call it before the memory is first touched. It is advice: where the system has no huge pages nothing
    /// changes. Not for buffers that are to be committed bit by bit, as huge pages commit 2 MiB at a touch.
    pub fn advise_huge_pages(&mut self) {
        #[cfg(target_os = "linux")]
        // SAFETY: the range is exactly our own mapping, and this advice does not change its contents.
        unsafe {
            libc::madvise(self.start.as_ptr().cast::<c_void>(), self.capacity, libc::MADV_HUGEPAGE);
        }
    }

    /// The bytes, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self
    }

    /// The buffer as numbers; a rest too short for a whole one is left out.
    pub fn typed<T: Element>(&self) -> &[T] {
        // SAFETY: a page-aligned start suits every `Element`, any bytes are a valid one, and the count stays
        // within the mapping. The borrow of `self` keeps the mapping alive and unwritten.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / size_of::<T>()) }
    }

    /// The buffer as numbers, for writing; a rest too short for a whole one is left out.
    pub fn typed_mut<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: as in `typed`; the exclusive borrow of `self` makes this the only access.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len / size_of::<T>())
        }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.typed()
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.typed_mut()
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: start and capacity are those of the mapping, which nothing refers to any more. The result is
        // not looked at: unmapping a whole mapping of our own cannot fail.
        unsafe {
            libc::munmap(self.start.as_ptr().cast::<c_void>(), self.capacity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_zeroed_on_a_page_and_ends_on_one() {
        for len in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let mut buffer = AlignedBuffer::zeroed(len).unwrap();
            buffer.advise_huge_pages();
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr() as usize % 4096, 0);
            assert_eq!(buffer.capacity() % 4096, 0);
            assert!(buffer.capacity() >= len.max(1));
            assert!(buffer.iter().all(|&b| b == 0));
            buffer.as_mut_slice().fill(0xff);
            assert!(buffer.iter().all(|&b| b == 0xff));
        }
    }

    #[test]
    fn typed_views_share_the_bytes() {
        let mut buffer = AlignedBuffer::zeroed(10).unwrap();
        buffer.typed_mut::<f32>().copy_from_slice(&[1.0, -2.0]);
        assert_eq!(&buffer[..8], &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
        assert_eq!(buffer.typed::<u16>().len(), 5);
    }

    #[test]
    fn refusal_names_the_bytes() {
        for bytes in [usize::MAX, usize::MAX / 2, 1 << 62] {
            let message = AlignedBuffer::zeroed(bytes).unwrap_err().to_string();
            assert!(message.contains(&bytes.to_string()), "{message}");
        }
    }

    #[test]
    fn crosses_threads() {
        let mut buffer = AlignedBuffer::zeroed(4096).unwrap();
        buffer[7] = 9;
        assert_eq!(std::thread::spawn(move || buffer[7]).join().unwrap(), 9);
    }
}
