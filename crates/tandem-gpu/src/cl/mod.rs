//! OpenCL's objects, owned.
//!
//! `cl3` has the functions; the objects of `opencl3` panic where releasing one fails, as it does after a device is
//! lost. Here a failed release is ignored: there is nothing to be done about it.
#![allow(unsafe_code)]

mod event;
mod queue;

use std::ffi::{CString, c_void};
use std::ptr;

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
