//! Enqueuing.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::Arc;

use cl3::types::{cl_device_id, cl_event, cl_mem};

use super::{Buffer, Context, Event, Kernel, Queue};
use crate::error::{Named, Result};

impl Queue {
    /// An in-order queue, which may keep the times of its commands.
    pub(crate) fn new(context: &Context, device: cl_device_id, timed: bool) -> Result<Self> {
        let profiling = if timed { cl3::command_queue::CL_QUEUE_PROFILING_ENABLE } else { 0 };
        // The function of OpenCL 1.2: it is there in every version, and asks for nothing that 2.0 added.
        // SAFETY: context and device are valid, and belong together.
        unsafe { cl3::command_queue::create_command_queue(context.raw(), device, profiling) }
            .named("clCreateCommandQueue")
            .map(Self)
    }

    /// Hands the commands so far to the device.
    pub(crate) fn flush(&self) -> Result<()> {
        cl3::command_queue::flush(self.raw()).named("clFlush")
    }

    /// Waits until all commands are done.
    pub(crate) fn finish(&self) -> Result<()> {
        cl3::command_queue::finish(self.raw()).named("clFinish")
    }

    /// A point in the queue: over once everything before it is.
    pub(crate) fn marker(&self) -> Result<Event> {
        // SAFETY: the wait list is empty.
        unsafe { cl3::command_queue::enqueue_marker_with_wait_list(self.raw(), 0, ptr::null()) }
            .named("clEnqueueMarkerWithWaitList")
            .map(Event)
    }

    /// Makes what is enqueued from now on wait for events, which may be other queues': those must have been flushed.
    pub(crate) fn wait_for(&self, events: &[Arc<Event>]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let (count, list) = wait_list(events);
        // SAFETY: the events are valid, and of this queue's context.
        unsafe {
            cl3::command_queue::enqueue_barrier_with_wait_list(self.raw(), count, list.as_ptr())
        }
        .named("clEnqueueBarrierWithWaitList")
        .map(|event| drop(Event(event)))
    }

    /// Enqueues a kernel with the arguments it has now.
    ///
    /// # Safety
    /// The arguments fit the kernel's source, memory among them stays valid until the queue has finished, and the
    /// kernel keeps within it at this size.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &Kernel,
        global: [usize; 3],
        local: [usize; 3],
    ) -> Result<Event> {
        // SAFETY: queue and kernel are valid; the rest is the caller's promise.
        unsafe {
            cl3::command_queue::enqueue_nd_range_kernel(
                self.raw(),
                kernel.raw(),
                3,
                ptr::null(),
                global.as_ptr(),
                local.as_ptr(),
                0,
                ptr::null(),
            )
        }
        .named("clEnqueueNDRangeKernel")
        .map(Event)
    }

    /// Copies bytes to `at` in a buffer, and waits.
    pub(crate) fn write(&self, buffer: &Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        // SAFETY: the call blocks until `bytes` has been read; OpenCL checks the size against the buffer's.
        unsafe {
            cl3::command_queue::enqueue_write_buffer(
                self.raw(),
                buffer.raw(),
                1,
                at,
                bytes.len(),
                bytes.as_ptr().cast(),
                0,
                ptr::null(),
            )
        }
        .named("clEnqueueWriteBuffer")
        .map(|event| drop(Event(event)))
    }

    /// Enqueues a copy of bytes to `at` in a buffer, once the events are over.
    ///
    /// # Safety
    /// The bytes stay there, unchanged, until the copy is done.
    pub(crate) unsafe fn write_later(
        &self,
        buffer: &Buffer,
        at: usize,
        start: *const u8,
        bytes: usize,
        after: &[Arc<Event>],
    ) -> Result<Event> {
        let (count, list) = wait_list(after);
        let list = if count == 0 { ptr::null() } else { list.as_ptr() };
        // SAFETY: the caller's promise; OpenCL checks the size against the buffer's.
        unsafe {
            cl3::command_queue::enqueue_write_buffer(
                self.raw(),
                buffer.raw(),
                0,
                at,
                bytes,
                start.cast(),
                count,
                list,
            )
        }
        .named("clEnqueueWriteBuffer")
        .map(Event)
    }

    /// Maps a buffer for the host to fill, until [`unmap`](Self::unmap).
    pub(crate) fn map_for_writing(&self, buffer: &Buffer, size: usize) -> Result<*mut u8> {
        let mut address: cl_mem = ptr::null_mut();
        // SAFETY: the call blocks until the mapping is there; OpenCL checks the size against the buffer's.
        unsafe {
            cl3::command_queue::enqueue_map_buffer(
                self.raw(),
                buffer.raw(),
                1,
                cl3::memory::CL_MAP_WRITE,
                0,
                size,
                &mut address,
                0,
                ptr::null(),
            )
        }
        .named("clEnqueueMapBuffer")
        .map(|event| drop(Event(event)))?;
        Ok(address.cast())
    }

    /// Gives a mapping back.
    ///
    /// # Safety
    /// `address` is from [`Self::map_for_writing`] of this buffer, and nothing uses the mapping any more.
    pub(crate) unsafe fn unmap(&self, buffer: &Buffer, address: *mut u8) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            cl3::command_queue::enqueue_unmap_mem_object(
                self.raw(),
                buffer.raw(),
                address.cast(),
                0,
                ptr::null(),
            )
        }
        .named("clEnqueueUnmapMemObject")
        .map(|event| drop(Event(event)))?;
        self.finish()
    }

    /// Copies bytes from `at` in a buffer, and waits.
    pub(crate) fn read(&self, buffer: &Buffer, at: usize, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the call blocks until `bytes` has been written; OpenCL checks the size against the buffer's.
        unsafe {
            cl3::command_queue::enqueue_read_buffer(
                self.raw(),
                buffer.raw(),
                1,
                at,
                bytes.len(),
                bytes.as_mut_ptr().cast(),
                0,
                ptr::null(),
            )
        }
        .named("clEnqueueReadBuffer")
        .map(|event| drop(Event(event)))
    }

    /// Where the device's driver maps a buffer of `size` bytes for the host: the host's own address where nothing
    /// is copied.
    pub(crate) fn mapped_address(&self, buffer: &Buffer, size: usize) -> Result<usize> {
        let mut address: cl_mem = ptr::null_mut();
        // SAFETY: the call blocks; the mapping is given back before anyone could use it.
        unsafe {
            let event = cl3::command_queue::enqueue_map_buffer(
                self.raw(),
                buffer.raw(),
                1,
                cl3::memory::CL_MAP_READ,
                0,
                size,
                &mut address,
                0,
                ptr::null(),
            )
            .named("clEnqueueMapBuffer")?;
            drop(Event(event));
            let event = cl3::command_queue::enqueue_unmap_mem_object(
                self.raw(),
                buffer.raw(),
                address,
                0,
                ptr::null(),
            )
            .named("clEnqueueUnmapMemObject")?;
            drop(Event(event));
        }
        self.finish()?;
        Ok(address as usize)
    }
}

/// Events as OpenCL takes them.
fn wait_list(events: &[Arc<Event>]) -> (u32, Vec<cl_event>) {
    let list: Vec<cl_event> = events.iter().map(|event| event.raw()).collect();
    (u32::try_from(list.len()).unwrap_or(u32::MAX), list)
}
