//! Arguments of kernels.

use super::Gpu;
use super::lent::{Region, RegionMut};
use crate::cl::Kernel;
use crate::error::{GpuError, Result};
use crate::memory::Place;

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg<'a> {
    Memory(&'a Place),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Arg<'_> {
    /// Sets the argument; answers how many parameters it takes.
    ///
    /// # Safety
    /// The kernel's parameters from `index` on are of its type.
    pub(super) unsafe fn set(&self, gpu: &Gpu, kernel: &Kernel, index: u32) -> Result<u32> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::U32(value) => kernel.set(index, value)?,
                Self::U64(value) => kernel.set(index, value)?,
                Self::F32(value) => kernel.set(index, value)?,
                Self::Memory(place) => {
                    let offset = match (place, gpu.memory.usm()) {
                        (Place::Buffer(buffer, offset), _) => {
                            kernel.set(index, &buffer.raw())?;
                            *offset as u64
                        }
                        (Place::Pointer(start), Some(usm)) => {
                            usm.set_arg(kernel, index, *start as *const u8)?;
                            0
                        }
                        (Place::Pointer(start), None) => {
                            let device = gpu.device.info().full_name();
                            return Err(GpuError::NotShared { start: *start, bytes: 0, device });
                        }
                    };
                    kernel.set(index + 1, &offset)?;
                    return Ok(2);
                }
            }
        }
        Ok(1)
    }
}

impl<'a, T> From<&'a Region<'_, T>> for Arg<'a> {
    fn from(region: &'a Region<'_, T>) -> Self {
        Self::Memory(&region.place)
    }
}

impl<'a, T> From<&'a RegionMut<'_, T>> for Arg<'a> {
    fn from(region: &'a RegionMut<'_, T>) -> Self {
        Self::Memory(&region.0.place)
    }
}

/// Counts and sizes: kernels take 32 bits.
impl From<usize> for Arg<'_> {
    fn from(value: usize) -> Self {
        let Ok(value) = u32::try_from(value) else { panic!("{value} is too large for a kernel") };
        Self::U32(value)
    }
}

impl From<u64> for Arg<'_> {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

impl From<f32> for Arg<'_> {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}
