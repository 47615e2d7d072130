//! Page-aligned, zeroed memory straight from the operating system.
//!
//! The weight store and the KV cache are allocations that a GPU may address in place. OpenCL drivers do that
//! without a hidden copy only where both the address and the size are aligned, so this buffer starts on a page
//! and ends on one. Anonymous pages come zeroed and are committed when first touched: a KV cache sized for a
//! long context costs nothing until the context grows.
//!
//! Some GPUs address only memory that their driver has allocated, on behalf of both sides. Such memory is supplied
//! from above: whoever needs a buffer takes an [`Allocator`], and knows nothing of drivers.
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
    /// A device's driver refused.
    #[error("cannot allocate {bytes} bytes that {device} can address: {reason}")]
    Device {
        /// Bytes asked for.
        bytes: usize,
        /// The device.
        device: String,
        /// The driver's reason.
        reason: String,
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
elements!(u8, i8, u16, u32, i32, u64, f32, half::f16, half::bf16, crate::QuantizedBlock);

/// Where buffers come from.
pub trait Allocator {
    /// A buffer of `len` zero bytes.
    ///
    /// # Errors
    /// Says how many bytes were asked for where they cannot be had.
    fn zeroed(&self, len: usize) -> Result<AlignedBuffer, AllocError>;
}

/// The operating system's own memory: [`AlignedBuffer::zeroed`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemMemory;

impl Allocator for SystemMemory {
    fn zeroed(&self, len: usize) -> Result<AlignedBuffer, AllocError> {
        AlignedBuffer::zeroed(len)
    }
}

/// Memory that an [`Allocator`] outside this crate supplies. Dropping it gives the memory back.
///
/// # Safety
/// [`start`](Self::start) and [`capacity`](Self::capacity) answer the same at every call. From there that many bytes
/// are readable and writable by every thread until the value is dropped, and nothing but its owner uses them, except
/// a device to which the owner has lent them.
pub unsafe trait SuppliedMemory: Send + Sync + std::fmt::Debug {
    /// The first byte, on a page's boundary.
    fn start(&self) -> NonNull<u8>;

    /// Bytes; a multiple of 4096.
    fn capacity(&self) -> usize;

    /// Asks for huge pages, where the memory's kind allows that.
    fn advise_huge_pages(&mut self) {}
}

/// Zeroed memory whose address and size are multiples of 4096 bytes.
///
/// Dereferences to the bytes asked for; [`capacity`](Self::capacity) says how many are really there.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    len: usize,
    capacity: usize,
    /// Owner of the pages; without one they are a mapping of our own.
    owner: Option<Box<dyn SuppliedMemory>>,
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
        Ok(Self { start, len, capacity, owner: None })
    }

    /// The first `len` bytes of memory that was supplied from outside, which must be zero.
    ///
    /// # Panics
    /// When the memory is not of whole pages, or shorter than `len`: an error of its supplier's.
    pub fn supplied(owner: Box<dyn SuppliedMemory>, len: usize) -> Self {
        let (start, capacity) = (owner.start(), owner.capacity());
        let whole_pages = start.addr().get().is_multiple_of(PAGE) && capacity.is_multiple_of(PAGE);
        assert!(whole_pages, "memory of {capacity} bytes at {start:?} is not of whole pages");
        assert!(len <= capacity, "{len} bytes in a memory of {capacity}");
        Self { start, len, capacity, owner: Some(owner) }
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
        if let Some(owner) = &mut self.owner {
            return owner.advise_huge_pages();
        }
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
        // within the pages. The borrow of `self` keeps them alive and unwritten.
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
        if self.owner.is_some() {
            return;
        }
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
    fn supplied_memory_is_used_in_place_and_given_back() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};

        #[derive(Debug)]
        struct Counted(AlignedBuffer, Arc<AtomicUsize>);
        // SAFETY: the pages are those of the inner buffer, which this value owns and does not otherwise use.
        unsafe impl SuppliedMemory for Counted {
            fn start(&self) -> NonNull<u8> {
                self.0.start
            }

            fn capacity(&self) -> usize {
                self.0.capacity
            }
        }
        impl Drop for Counted {
            fn drop(&mut self) {
                self.1.fetch_add(1, Ordering::Relaxed);
            }
        }

        let drops = Arc::new(AtomicUsize::new(0));
        let inner = AlignedBuffer::zeroed(5000).unwrap();
        let start = inner.as_ptr();
        let mut buffer =
            AlignedBuffer::supplied(Box::new(Counted(inner, Arc::clone(&drops))), 4100);
        buffer.advise_huge_pages();
        assert_eq!((buffer.as_ptr(), buffer.len(), buffer.capacity()), (start, 4100, 8192));
        buffer.fill(3);
        assert!(buffer.iter().all(|&b| b == 3));
        drop(buffer);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn crosses_threads() {
        let mut buffer = AlignedBuffer::zeroed(4096).unwrap();
        buffer[7] = 9;
        assert_eq!(std::thread::spawn(move || buffer[7]).join().unwrap(), 9);
    }
}
