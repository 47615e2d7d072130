//! OpenCL's objects, owned.
//!
//! `cl3` has the functions; the objects of `opencl3` panic where releasing one fails, as it does after a device is
//! lost. Here a failed release is ignored: there is nothing to be done about it.
#![allow(unsafe_code)]

use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;

use cl3::types::{
    cl_command_queue, cl_context, cl_device_id, cl_event, cl_kernel, cl_mem, cl_program,
};

use crate::error::{Named, Raw, Result};

/// A wrapper that releases its object when dropped.
macro_rules! owned {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $release:path) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name($raw);

        // SAFETY: objects of OpenCL may be used from any thread (OpenCL 3.0, appendix A.2).
        unsafe impl Send for $name {}

        impl $name {
            /// The object itself, valid as long as this wrapper.
            pub(crate) fn raw(&self) -> $raw {
                self.0
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the object is ours and released once.
                let _ignored = unsafe { $release(self.0) };
            }
        }
    };
}

owned!(
    /// What memory, queues and programs belong to.
    Context, cl_context, cl3::context::release_context
);
owned!(
    /// Commands in order.
    Queue, cl_command_queue, cl3::command_queue::release_command_queue
);
owned!(
    /// Compiled source.
    Program, cl_program, cl3::program::release_program
);
owned!(
    /// A function of a program, with its arguments.
    Kernel, cl_kernel, cl3::kernel::release_kernel
);
owned!(
    /// Memory of the device, or memory of ours that it addresses.
    Buffer, cl_mem, cl3::memory::release_mem_object
);
owned!(
    /// The state of a command.
    Event, cl_event, cl3::event::release_event
);

// SAFETY: a context has no state that its users change; only kernels' arguments must not be set from two threads
// at a time (OpenCL 3.0, appendix A.2).
unsafe impl Sync for Context {}
// SAFETY: as for contexts; events are only asked.
unsafe impl Sync for Event {}
// SAFETY: as for contexts; buffers are handed to commands only.
unsafe impl Sync for Buffer {}
// SAFETY: as for contexts; a queue takes commands from any thread.
unsafe impl Sync for Queue {}

impl Context {
    pub(crate) fn new(device: cl_device_id) -> Result<Self> {
        cl3::context::create_context(&[device], ptr::null(), None, ptr::null_mut())
            .named("clCreateContext")
            .map(Self)
    }
}

impl Queue {
    /// An in-order queue that keeps the times of its commands.
    pub(crate) fn new(context: &Context, device: cl_device_id) -> Result<Self> {
        let profiling = cl3::command_queue::CL_QUEUE_PROFILING_ENABLE;
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

impl Program {
    pub(crate) fn from_source(context: &Context, source: &str) -> Result<Self> {
        cl3::program::create_program_with_source(context.raw(), &[source])
            .named("clCreateProgramWithSource")
            .map(Self)
    }

    pub(crate) fn from_binary(context: &Context, device: cl_device_id, binary: &[u8]) -> Raw<Self> {
        // SAFETY: context and device are valid; the driver checks what is in the binary.
        unsafe {
            cl3::program::create_program_with_binary(context.raw(), &[device], &[binary]).map(Self)
        }
    }

    /// Compiles; fails with the driver's code, and then there is a log.
    pub(crate) fn build(&self, device: cl_device_id, options: &str) -> Raw<()> {
        // Options are of this crate's making and hold no NUL.
        let options = CString::new(options).unwrap_or_default();
        cl3::program::build_program(self.raw(), &[device], &options, None, ptr::null_mut())
    }

    pub(crate) fn build_log(&self, device: cl_device_id) -> String {
        let log = cl3::program::get_program_build_data(
            self.raw(),
            device,
            cl3::program::CL_PROGRAM_BUILD_LOG,
        );
        crate::device::text(&log.unwrap_or_default())
    }

    /// The compiled form, where the driver gives it.
    pub(crate) fn binary(&self) -> Option<Vec<u8>> {
        let info =
            cl3::program::get_program_info(self.raw(), cl3::program::CL_PROGRAM_BINARIES).ok()?;
        info.to_vec_vec_uchar().into_iter().next().filter(|binary| !binary.is_empty())
    }
}

impl Kernel {
    pub(crate) fn new(program: &Program, name: &str) -> Result<Self> {
        let name = CString::new(name).unwrap_or_default();
        cl3::kernel::create_kernel(program.raw(), &name).named("clCreateKernel").map(Self)
    }

    /// Sets an argument that is passed by value.
    ///
    /// # Safety
    /// `T` is the argument's type in the kernel's source.
    pub(crate) unsafe fn set<T: Copy>(&self, index: u32, value: &T) -> Result<()> {
        // SAFETY: the size is that of the value pointed to; the rest is the caller's promise.
        unsafe {
            cl3::kernel::set_kernel_arg(
                self.raw(),
                index,
                size_of::<T>(),
                ptr::from_ref(value).cast::<c_void>(),
            )
        }
        .named("clSetKernelArg")
    }
}

impl Buffer {
    /// Memory of the device's choice.
    pub(crate) fn new(context: &Context, size: usize) -> Result<Self> {
        // SAFETY: no host memory is involved.
        unsafe {
            cl3::memory::create_buffer(
                context.raw(),
                cl3::memory::CL_MEM_READ_WRITE,
                size,
                ptr::null_mut(),
            )
        }
        .named("clCreateBuffer")
        .map(Self)
    }

    /// Memory that the driver allocates for the host, from where copies to the device are fastest.
    pub(crate) fn of_host(context: &Context, size: usize) -> Result<Self> {
        let flags = cl3::memory::CL_MEM_READ_WRITE | cl3::memory::CL_MEM_ALLOC_HOST_PTR;
        // SAFETY: no memory of ours is involved.
        unsafe { cl3::memory::create_buffer(context.raw(), flags, size, ptr::null_mut()) }
            .named("clCreateBuffer")
            .map(Self)
    }

    /// Memory of the host's, to be used in place.
    ///
    /// # Safety
    /// The memory outlives the buffer and every command that uses it.
    pub(crate) unsafe fn over_host(context: &Context, start: *mut u8, size: usize) -> Result<Self> {
        let flags = cl3::memory::CL_MEM_READ_WRITE | cl3::memory::CL_MEM_USE_HOST_PTR;
        // SAFETY: the caller's promise.
        unsafe { cl3::memory::create_buffer(context.raw(), flags, size, start.cast()) }
            .named("clCreateBuffer")
            .map(Self)
    }
}

impl Event {
    /// Waits until the command is done.
    pub(crate) fn wait(&self) -> Result<()> {
        cl3::event::wait_for_events(&[self.raw()]).named("clWaitForEvents")
    }

    /// Whether the command is done.
    ///
    /// # Errors
    /// When it has failed.
    pub(crate) fn is_done(&self) -> Result<bool> {
        use cl3::event::{CL_COMPLETE, CL_EVENT_COMMAND_EXECUTION_STATUS};
        let status = cl3::event::get_event_info(self.raw(), CL_EVENT_COMMAND_EXECUTION_STATUS)
            .named("clGetEventInfo")?
            .to_int();
        if status < 0 { Err(status).named("a kernel") } else { Ok(status == CL_COMPLETE) }
    }

    /// When the command began on the device and when it ended, in nanoseconds of the device's clock. It must be done.
    pub(crate) fn interval(&self) -> Result<(u64, u64)> {
        use cl3::event::{CL_PROFILING_COMMAND_END, CL_PROFILING_COMMAND_START};
        let time = |what| {
            cl3::event::get_event_profiling_info(self.raw(), what)
                .named("clGetEventProfilingInfo")
                .map(|info| info.to_ulong())
        };
        Ok((time(CL_PROFILING_COMMAND_START)?, time(CL_PROFILING_COMMAND_END)?))
    }

    /// Seconds from the command's start on the device to its end. The command must be done.
    pub(crate) fn seconds(&self) -> Result<f64> {
        let (start, end) = self.interval()?;
        Ok(end.saturating_sub(start) as f64 * 1e-9)
    }
}

/// Events as OpenCL takes them.
fn wait_list(events: &[Arc<Event>]) -> (u32, Vec<cl_event>) {
    let list: Vec<cl_event> = events.iter().map(|event| event.raw()).collect();
    (u32::try_from(list.len()).unwrap_or(u32::MAX), list)
}
