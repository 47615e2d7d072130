//! Memory of the host's that a driver can copy from while the CPU goes on.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use crate::cl::{Buffer, Event, Queue};
use crate::error::{GpuError, Result};

/// Memory that the driver has allocated for the host and mapped, filled for copies to a device.
#[derive(Debug)]
pub(crate) struct Staging {
    queue: Arc<Queue>,
    buffer: Buffer,
    start: NonNull<u8>,
    bytes: usize,
    /// Copies out of it that may not be done.
    copies: Vec<Arc<Event>>,
}

// SAFETY: the memory is this value's alone, and may be used from any thread.
unsafe impl Send for Staging {}

impl Staging {
    /// Memory for copies that go through `queue`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn new(
        context: &crate::cl::Context,
        queue: &Arc<Queue>,
        bytes: usize,
    ) -> Result<Self> {
        let buffer = Buffer::of_host(context, bytes)?;
        let start = NonNull::new(queue.map_for_writing(&buffer, bytes)?)
            .ok_or_else(|| GpuError::Cache("staging memory is mapped nowhere".to_owned()))?;
        Ok(Self { queue: Arc::clone(queue), buffer, start, bytes, copies: Vec::new() })
    }

    /// The memory, to be filled anew: waits for the copies out of it.
    ///
    /// # Errors
    /// When a copy has failed.
    pub(crate) fn refill(&mut self) -> Result<&mut [u8]> {
        let copies = std::mem::take(&mut self.copies);
        copies.iter().try_for_each(|copy| copy.wait())?;
        // SAFETY: the driver has mapped so many bytes, which nothing reads now.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) })
    }

    /// Enqueues a copy of a part of the memory to `at` in `to`, once the events are over.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the part is beyond the memory.
    pub(crate) fn copy_to(
        &mut self,
        part: std::ops::Range<usize>,
        to: &Buffer,
        at: usize,
        after: &[Arc<Event>],
    ) -> Result<Arc<Event>> {
        assert!(part.start <= part.end && part.end <= self.bytes, "{part:?} of {}", self.bytes);
        // SAFETY: the part is within the memory, which stays unchanged until `refill` or `drop` has waited for the
        // copy.
        let copy = unsafe {
            self.queue.write_later(to, at, self.start.as_ptr().add(part.start), part.len(), after)
        }?;
        let copy = Arc::new(copy);
        self.copies.push(Arc::clone(&copy));
        Ok(copy)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a lost device there is nothing left that could read the memory.
        let _lost = self.queue.finish();
        // SAFETY: the memory was mapped by this queue, and is used no more.
        let _lost = unsafe { self.queue.unmap(&self.buffer, self.start.as_ptr()) };
    }
}
