//! Memory that the CPU and a device both address, with no copy between them.
//!
//! Where the device has unified shared memory, buffers are *host* allocations of the driver's: those the CPU reads at
//! full speed, which on older drivers is not so for *shared* ones. Elsewhere they are pages of our own under
//! `CL_MEM_USE_HOST_PTR`, whose address and size are multiples of 4096: drivers copy where either is not a multiple
//! of 64. A device with memory of its own gets neither; what it computes with is uploaded.
//!
//! Kernels find a buffer's memory by its address, so the weight store and the KV cache need not know of devices.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tandem_memory::{AlignedBuffer, AllocError, Allocator, SuppliedMemory};

use crate::cl::{Buffer, Context};
use crate::device::Device;
use crate::error::Result;
use crate::usm::{Usm, not_shared};

/// Address and size of every allocation are multiples of this.
const PAGE: usize = 4096;

/// How memory is shared with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// The driver's host allocations (`clHostMemAllocINTEL`).
    UsmHost,
    /// Pages of our own (`CL_MEM_USE_HOST_PTR`).
    HostPointer,
    /// Not at all: the device has memory of its own.
    None,
}

impl Sharing {
    /// The best that a device can do.
    fn of(device: &Device, usm: Option<Usm>) -> Self {
        let info = device.info();
        match usm {
            _ if !info.unified_memory => Self::None,
            Some(_) if info.usm.host => Self::UsmHost,
            _ => Self::HostPointer,
        }
    }
}

/// Allocates memory that both sides address. Clones share their allocations.
#[derive(Clone, Debug)]
pub struct SharedMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    context: Arc<Context>,
    device: String,
    sharing: Sharing,
    usm: Option<Usm>,
    /// What is allocated, by address of its first byte.
    allocations: Mutex<BTreeMap<usize, Allocation>>,
    /// Allocations until one is refused, for tests.
    until_refusal: AtomicUsize,
}

/// An allocation, as kernels take it.
#[derive(Debug)]
struct Allocation {
    bytes: usize,
    /// None for memory that kernels take by pointer.
    buffer: Option<Arc<Buffer>>,
}

/// Where some bytes are for a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// At their own address.
    Pointer(usize),
    /// So many bytes into a buffer.
    Buffer(Arc<Buffer>, usize),
}

impl SharedMemory {
    pub(crate) fn new(device: &Device, context: Arc<Context>, wanted: Option<Sharing>) -> Self {
        let usm = Usm::of(device.platform);
        let best = Sharing::of(device, usm);
        // Nothing that the device cannot do is to be had by asking for it.
        let sharing = match wanted {
            Some(Sharing::HostPointer) if best == Sharing::UsmHost => Sharing::HostPointer,
            Some(Sharing::None) => Sharing::None,
            _ => best,
        };
        let allocations = Mutex::default();
        let device = device.info().full_name();
        let until_refusal = AtomicUsize::new(usize::MAX);
        Self(Arc::new(Shared { context, device, sharing, usm, allocations, until_refusal }))
    }

    /// Refuses an allocation, after `count` others.
    pub(crate) fn refuse_after(&self, count: usize) {
        self.0.until_refusal.store(count, Ordering::Relaxed);
    }

    /// Why this allocation is one to be refused, if it is; none after it is.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        let now = self.0.until_refusal.fetch_sub(1, Ordering::Relaxed) == 0;
        now.then_some("a test wants it so")
    }

    /// How memory is shared.
    pub fn sharing(&self) -> Sharing {
        self.0.sharing
    }

    pub(crate) fn usm(&self) -> Option<Usm> {
        self.0.usm
    }

    /// Where bytes of ours are for a kernel.
    ///
    /// # Errors
    /// When they are not part of one allocation of this allocator.
    pub(crate) fn place(&self, bytes: &[u8]) -> Result<Place> {
        self.place_at(bytes.as_ptr() as usize, bytes.len())
    }

    /// As [`Self::place`], of so many bytes at an address.
    ///
    /// # Errors
    /// As [`Self::place`].
    pub(crate) fn place_at(&self, start: usize, len: usize) -> Result<Place> {
        let allocations = self.0.allocations();
        let found = allocations.range(..=start).next_back();
        match found.filter(|(first, a)| start + len <= *first + a.bytes) {
            None => Err(not_shared(start, len, &self.0.device)),
            Some((_, Allocation { buffer: None, .. })) => Ok(Place::Pointer(start)),
            Some((first, Allocation { buffer: Some(buffer), .. })) => {
                Ok(Place::Buffer(Arc::clone(buffer), start - first))
            }
        }
    }

    fn allocate(&self, len: usize) -> Result<AlignedBuffer, AllocError> {
        let refused = |error: &dyn std::fmt::Display| AllocError::Device {
            bytes: len,
            device: self.0.device.clone(),
            reason: error.to_string(),
        };
        if self.0.sharing != Sharing::None
            && let Some(reason) = self.refusal()
        {
            return Err(refused(&reason));
        }
        let (pages, buffer) = match (self.0.sharing, self.0.usm) {
            (Sharing::UsmHost, Some(usm)) => {
                let bytes = len.max(1).checked_next_multiple_of(PAGE);
                // PoCL 5 gives less alignment than it is asked for: with a page more there are whole ones within.
                let (bytes, more) = bytes
                    .and_then(|bytes| Some((bytes, bytes.checked_add(PAGE)?)))
                    .ok_or(AllocError::TooLarge(len))?;
                let block = usm
                    .alloc_host(&self.0.context, more, PAGE as u32)
                    .map_err(|error| refused(&error))?;
                let skip = block.addr().get().next_multiple_of(PAGE) - block.addr().get();
                // SAFETY: the driver has given us a page more than `bytes`, writable, and `skip` is less than one.
                let start = unsafe { block.add(skip) };
                // SAFETY: as above.
                unsafe { start.write_bytes(0, bytes) };
                (Pages::Driver { usm, block, start, bytes }, None)
            }
            (Sharing::HostPointer, _) => {
                let own = AlignedBuffer::zeroed(len)?;
                let (start, bytes) = (own.as_ptr().cast_mut(), own.capacity());
                // SAFETY: `Lent` releases the buffer before its pages, and no scope outlives the borrow of what it
                // lends to kernels.
                let buffer = unsafe { Buffer::over_host(&self.0.context, start, bytes) }
                    .map_err(|error| refused(&error))?;
                (Pages::Own(own), Some(Arc::new(buffer)))
            }
            // What is not shared is plain memory.
            _ => return AlignedBuffer::zeroed(len),
        };
        let lent = Lent { shared: Arc::clone(&self.0), pages };
        let (start, bytes) = (lent.start().addr().get(), lent.capacity());
        self.0.allocations().insert(start, Allocation { bytes, buffer });
        Ok(AlignedBuffer::supplied(Box::new(lent), len))
    }
}

impl Allocator for SharedMemory {
    fn zeroed(&self, len: usize) -> Result<AlignedBuffer, AllocError> {
        self.allocate(len)
    }
}

impl Shared {
    /// The map is whole at every moment, so a panic elsewhere does no harm to it.
    fn allocations(&self) -> MutexGuard<'_, BTreeMap<usize, Allocation>> {
        self.allocations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages that a device may address.
#[derive(Debug)]
struct Lent {
    shared: Arc<Shared>,
    pages: Pages,
}

#[derive(Debug)]
enum Pages {
    /// The driver's: whole pages within what it calls its block.
    Driver { usm: Usm, block: NonNull<u8>, start: NonNull<u8>, bytes: usize },
    /// Ours.
    Own(AlignedBuffer),
}

// SAFETY: the pages are owned and may be used from any thread.
unsafe impl Send for Pages {}
// SAFETY: shared access only looks up the address and the size.
unsafe impl Sync for Pages {}

// SAFETY: the pages are this value's alone, whole, and stay where they are until it is dropped.
unsafe impl SuppliedMemory for Lent {
    fn start(&self) -> NonNull<u8> {
        match &self.pages {
            Pages::Driver { start, .. } => *start,
            Pages::Own(own) => NonNull::from(&own[..]).cast(),
        }
    }

    fn capacity(&self) -> usize {
        match &self.pages {
            Pages::Driver { bytes, .. } => *bytes,
            Pages::Own(own) => own.capacity(),
        }
    }

    fn advise_huge_pages(&mut self) {
        if let Pages::Own(own) = &mut self.pages {
            own.advise_huge_pages();
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // With its entry goes the buffer over our pages, before the pages themselves.
        self.shared.allocations().remove(&self.start().addr().get());
        if let Pages::Driver { usm, block, .. } = &self.pages {
            // SAFETY: the memory is from this context's `alloc_host`, and its owner is gone.
            unsafe { usm.free(&self.shared.context, *block) };
        }
    }
}
