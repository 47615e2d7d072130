//! Unified shared memory, Intel's extension: memory that the driver allocates and both sides address by pointer.
//!
//! `cl3`'s wrappers look its functions up in libOpenCL, which does not export them. The specification says to ask
//! the platform for each (`cl_intel_unified_shared_memory`, "New API Functions").
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use cl3::types::{cl_context, cl_kernel, cl_platform_id};

use crate::cl::{Context, Kernel};
use crate::error::{GpuError, Named, Result};

type HostAlloc = unsafe extern "C" fn(cl_context, *const u64, usize, u32, *mut i32) -> *mut c_void;
type Free = unsafe extern "C" fn(cl_context, *mut c_void) -> i32;
type SetArg = unsafe extern "C" fn(cl_kernel, u32, *const c_void) -> i32;

/// The extension's functions, of one platform.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usm {
    host_alloc: HostAlloc,
    free: Free,
    set_arg: SetArg,
}

impl Usm {
    /// The functions, where the platform has them all.
    pub(crate) fn of(platform: cl_platform_id) -> Option<Self> {
        // SAFETY: the types are those of the functions' declarations in cl_ext.h; pointers to functions have the size
        // of pointers to data on every system that can load a library.
        unsafe {
            Some(Self {
                host_alloc: std::mem::transmute::<NonNull<c_void>, HostAlloc>(address(
                    platform,
                    c"clHostMemAllocINTEL",
                )?),
                free: std::mem::transmute::<NonNull<c_void>, Free>(address(
                    platform,
                    c"clMemBlockingFreeINTEL",
                )?),
                set_arg: std::mem::transmute::<NonNull<c_void>, SetArg>(address(
                    platform,
                    c"clSetKernelArgMemPointerINTEL",
                )?),
            })
        }
    }

    /// Host memory that the device addresses by the same pointer; not zeroed.
    pub(crate) fn alloc_host(
        &self,
        context: &Context,
        bytes: usize,
        alignment: u32,
    ) -> Result<NonNull<u8>> {
        let mut code = 0;
        // SAFETY: no properties are passed, and `code` outlives the call.
        let start = unsafe {
            (self.host_alloc)(context.raw(), std::ptr::null(), bytes, alignment, &raw mut code)
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if code == 0 => Ok(start),
            // A driver that says neither has broken its promise: no memory is what it comes to.
            _ => Err(if code == 0 { cl3::error_codes::CL_OUT_OF_HOST_MEMORY } else { code })
                .named("clHostMemAllocINTEL"),
        }
    }

    /// Gives memory back once every command that uses it is done.
    ///
    /// # Safety
    /// `start` is from [`Self::alloc_host`] of this context, and nothing uses the memory any more but commands that
    /// are enqueued.
    pub(crate) unsafe fn free(&self, context: &Context, start: NonNull<u8>) {
        // SAFETY: the caller's promise. A failure leaves the memory allocated.
        unsafe { (self.free)(context.raw(), start.as_ptr().cast()) };
    }

    /// Makes a pointer an argument.
    ///
    /// # Safety
    /// The argument is a pointer in the kernel's source.
    pub(crate) unsafe fn set_arg(
        &self,
        kernel: &Kernel,
        index: u32,
        pointer: *const u8,
    ) -> Result<()> {
        // SAFETY: the caller's promise; the pointer itself is passed by value.
        match unsafe { (self.set_arg)(kernel.raw(), index, pointer.cast()) } {
            0 => Ok(()),
            code => Err(code).named("clSetKernelArgMemPointerINTEL"),
        }
    }
}

/// The address of one of a platform's own functions.
fn address(platform: cl_platform_id, name: &CStr) -> Option<NonNull<c_void>> {
    let library = cl3::load_library().as_ref().ok()?;
    let address = library.clGetExtensionFunctionAddressForPlatform(platform, name.as_ptr());
    address.and_then(NonNull::new)
}

/// The error of memory that a device cannot address.
pub(crate) fn not_shared(start: usize, bytes: usize, device: &str) -> GpuError {
    GpuError::NotShared { start, bytes, device: device.to_owned() }
}
