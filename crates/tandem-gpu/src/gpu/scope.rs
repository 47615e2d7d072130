//! Scopes: memory is lent to the device, and kernels are enqueued.

use std::marker::PhantomData;
use std::sync::Arc;

use tandem_memory::{Element, KvPool};

use super::Gpu;
use super::arg::Arg;
use super::lent::{Region, RegionMut};
use super::vec::{GpuVec, Storage, bytes_of};
use crate::error::Result;
use crate::fault::Fault;
use crate::memory::Place;
use crate::program::Source;

/// What to launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    pub(crate) source: Source,
    pub(crate) name: &'static str,
    pub(crate) defines: &'a [(&'static str, usize)],
    /// Work-items in all.
    pub(crate) global: [usize; 3],
    /// Work-items of a work-group.
    pub(crate) local: [usize; 3],
}

/// A time in which memory is lent to the device.
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    pub(super) gpu: &'env Gpu,
    /// Invariant, as in `std::thread::Scope`: a scope must not pass for a shorter one.
    pub(super) scope: PhantomData<&'scope mut &'scope ()>,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// The device.
    pub fn gpu(&self) -> &'env Gpu {
        self.gpu
    }

    /// Lends numbers for reading. They must be in [shared memory](Gpu::memory).
    ///
    /// # Errors
    /// When they are not.
    pub fn lend<T: Element>(&self, numbers: &'scope [T]) -> Result<Region<'scope, T>> {
        let place = self.gpu.memory.place(bytes_of(numbers))?;
        Ok(Region { place, len: numbers.len(), lent: PhantomData })
    }

    /// Lends numbers for reading and writing. They must be in [shared memory](Gpu::memory).
    ///
    /// # Errors
    /// When they are not.
    pub fn lend_mut<T: Element>(&self, numbers: &'scope mut [T]) -> Result<RegionMut<'scope, T>> {
        let place = self.gpu.memory.place(bytes_of(numbers))?;
        Ok(RegionMut(Region { place, len: numbers.len(), lent: PhantomData }))
    }

    /// Finds a pool of KV pages, which must be in [shared memory](Gpu::memory). Whoever launches kernels with it answers for
    /// their keeping to the pages of caches that are lent for the scope, and writing only those that no other cache has.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn lend_pool(&self, pool: &KvPool) -> Result<RegionMut<'scope, u8>> {
        let len = pool.bytes();
        let place = self.gpu.memory.place_at(pool.address(), len)?;
        Ok(RegionMut(Region { place, len, lent: PhantomData }))
    }

    /// Lends a vector for reading.
    ///
    /// # Errors
    /// When it belongs to another device.
    pub fn vec<T: Element>(&self, vec: &'scope GpuVec<T>) -> Result<Region<'scope, T>> {
        let place = match &vec.storage {
            Storage::Shared(own) => self.gpu.memory.place(own)?,
            Storage::Device(buffer) => Place::Buffer(Arc::clone(buffer), 0),
        };
        Ok(Region { place, len: vec.len, lent: PhantomData })
    }

    /// Lends a vector for reading and writing.
    ///
    /// # Errors
    /// When it belongs to another device.
    pub fn vec_mut<T: Element>(&self, vec: &'scope mut GpuVec<T>) -> Result<RegionMut<'scope, T>> {
        self.vec(vec).map(RegionMut)
    }

    /// Hands what was enqueued to the device, so that it begins while the CPU goes on.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn submit(&self) -> Result<()> {
        self.gpu.queue().flush()
    }

    /// Enqueues a kernel. Arguments follow the order of its parameters; memory takes two of them, base and offset
    /// (`IN` and `OUT` of `kernels/common.cl`).
    ///
    /// # Safety
    /// The arguments are what the kernel's source asks for, and with them it keeps within the memory it is given, and
    /// writes only where an argument is a [`RegionMut`].
    pub(crate) unsafe fn launch(&self, work: Work<'_>, args: &[Arg<'_>]) -> Result<()> {
        if work.global.contains(&0) {
            return Ok(());
        }
        let gpu = self.gpu;
        gpu.with_kernel(work, |kernel| {
            let mut index = 0;
            for arg in args {
                // SAFETY: the caller's promise about the parameters' types.
                index += unsafe { arg.set(gpu, kernel, index) }?;
            }
            gpu.faults.occasion(Fault::Enqueue, "clEnqueueNDRangeKernel")?;
            // SAFETY: regions are borrowed for the scope, whose end waits for the queue; the rest is the caller's
            // promise.
            let event = unsafe { gpu.queue().launch(kernel, work.global, work.local) }?;
            gpu.launches.set(gpu.launches.get() + 1);
            let event = Arc::new(event);
            gpu.newest.replace(Some(Arc::clone(&event)));
            if let Some(times) = gpu.times.borrow_mut().as_mut() {
                times.push((work.name, event));
            }
            Ok(())
        })
    }
}
