//! What can go wrong with a device.

use cl3::error_codes::ClError;

/// An error of the GPU's side.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// There is nothing to speak to a driver with.
    #[error("no OpenCL: {0}")]
    Unavailable(#[from] NoOpenCl),
    /// A call into the driver failed.
    #[error("OpenCL: {call} failed: {code}")]
    Call {
        /// The function.
        call: &'static str,
        /// The driver's answer.
        code: ClError,
    },
    /// The device took longer than it may.
    #[error("OpenCL: the device took {} s for what it was given: it hangs, or is far too slow", .0.as_secs())]
    TimedOut(std::time::Duration),
    /// A kernel's source did not compile.
    #[error("OpenCL: {file} does not compile for {device}: {log}")]
    Build {
        /// File of the kernel.
        file: &'static str,
        /// The device.
        device: String,
        /// First lines of the compiler's log.
        log: String,
    },
    /// No device suits.
    #[error("no OpenCL device to use: {0}")]
    NoDevice(String),
    /// Memory that was to be lent to the device cannot be addressed by it.
    #[error(
        "{bytes} bytes at {start:#x} were not allocated for {device}: \
         expected memory from its own allocator"
    )]
    NotShared {
        /// Address of the memory.
        start: usize,
        /// Its size.
        bytes: usize,
        /// The device.
        device: String,
    },
    /// The cache of experts cannot be as asked for, or cannot hold what a pass needs.
    #[error("expert cache: {0}")]
    Cache(String),
    /// A device lacks what a kernel needs.
    #[error("{device} lacks {what}")]
    Missing {
        /// The device.
        device: String,
        /// What it lacks.
        what: String,
    },
}

impl GpuError {
    /// Whether there is no device any more.
    pub fn is_lost(&self) -> bool {
        use cl3::error_codes::CL_DEVICE_NOT_AVAILABLE;
        matches!(self, Self::Call { code: ClError(CL_DEVICE_NOT_AVAILABLE), .. })
    }

    /// Whether memory for the device could not be had.
    pub fn is_allocation(&self) -> bool {
        use cl3::error_codes::{CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_HOST_MEMORY};
        match self {
            Self::Call { code, .. } => {
                [CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_HOST_MEMORY].contains(&code.0)
            }
            Self::Missing { what, .. } => what.starts_with("memory: "),
            _ => false,
        }
    }
}

/// Why there is no OpenCL on a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoOpenCl {
    /// The loader is not installed.
    #[error("libOpenCL.so.1 cannot be loaded; install it (Debian, Ubuntu: ocl-icd-libopencl1)")]
    NoLibrary,
    /// The loader found no driver that works.
    #[error(
        "libOpenCL.so.1 is there, but no driver that works; expected a .icd file that names one in {0} \
         (for Intel's GPUs on Debian, Ubuntu: intel-opencl-icd)"
    )]
    NoPlatform(String),
    /// The loader failed otherwise.
    #[error("listing platforms failed: {0}")]
    Failed(String),
}

/// A result whose error is the driver's code.
pub(crate) type Raw<T> = std::result::Result<T, i32>;

/// The usual result of this crate.
pub type Result<T, E = GpuError> = std::result::Result<T, E>;

/// Names the call that a code came from.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T>;
}

impl<T> Named<T> for Raw<T> {
    fn named(self, call: &'static str) -> Result<T> {
        self.map_err(|code| GpuError::Call { call, code: ClError(code) })
    }
}
