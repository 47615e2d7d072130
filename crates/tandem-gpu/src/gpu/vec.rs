//! Vectors that a device can use: shared with the CPU where that is possible, else in the device's own memory.

use std::marker::PhantomData;
use std::sync::Arc;

use tandem_memory::{AlignedBuffer, Allocator, Element};

use super::Gpu;
use crate::cl::Buffer;
use crate::error::{GpuError, Result};
use crate::memory::Sharing;

/// Numbers that a device can use.
#[derive(Debug)]
pub struct GpuVec<T> {
    pub(super) storage: Storage,
    pub(super) len: usize,
    numbers: PhantomData<T>,
}

#[derive(Debug)]
pub(super) enum Storage {
    Shared(AlignedBuffer),
    Device(Arc<Buffer>),
}

impl<T: Element> GpuVec<T> {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Gpu {
    /// Room for `len` numbers, all zero, which the device can use: shared with the CPU where that is possible.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<GpuVec<T>> {
        let bytes = len * size_of::<T>();
        let missing = |what| GpuError::Missing { device: self.device.info().full_name(), what };
        let storage = if self.memory.sharing() == Sharing::None {
            self.memory
                .refusal()
                .map_or(Ok(()), |reason| Err(missing(format!("memory: {reason}"))))?;
            let buffer = Arc::new(Buffer::new(&self.context, bytes.max(1))?);
            self.queue().write(&buffer, 0, &vec![0; bytes])?;
            Storage::Device(buffer)
        } else {
            let memory = self.memory.zeroed(bytes);
            Storage::Shared(memory.map_err(|e| missing(format!("memory: {e}")))?)
        };
        Ok(GpuVec { storage, len, numbers: PhantomData })
    }

    /// Numbers of ours, where the device can use them.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn upload<T: Element>(&self, numbers: &[T]) -> Result<GpuVec<T>> {
        let mut to = self.zeros(numbers.len())?;
        self.write(&mut to, numbers)?;
        Ok(to)
    }

    /// Replaces the numbers of a vector.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there are more or fewer numbers than the vector has.
    pub fn write<T: Element>(&self, to: &mut GpuVec<T>, numbers: &[T]) -> Result<()> {
        assert_eq!(numbers.len(), to.len, "numbers to write");
        match &mut to.storage {
            Storage::Shared(own) => own.typed_mut().copy_from_slice(numbers),
            Storage::Device(buffer) => {
                self.queue().write(buffer, 0, bytes_of(numbers))?;
            }
        }
        Ok(())
    }

    /// Replaces some of a vector's numbers, from `at` on.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the vector has fewer.
    pub fn write_at<T: Element>(&self, to: &mut GpuVec<T>, at: usize, numbers: &[T]) -> Result<()> {
        let end = at + numbers.len();
        assert!(end <= to.len, "numbers {at} to {end} of {}", to.len);
        match &mut to.storage {
            Storage::Shared(own) => own.typed_mut()[at..end].copy_from_slice(numbers),
            Storage::Device(buffer) => {
                self.queue().write(buffer, at * size_of::<T>(), bytes_of(numbers))?;
            }
        }
        Ok(())
    }

    /// Some of a vector's numbers, from `at` on: as many as `numbers` has room for.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the vector has fewer.
    pub fn read_at<T: Element>(
        &self,
        from: &GpuVec<T>,
        at: usize,
        numbers: &mut [T],
    ) -> Result<()> {
        let end = at + numbers.len();
        assert!(end <= from.len, "numbers {at} to {end} of {}", from.len);
        match &from.storage {
            Storage::Shared(own) => numbers.copy_from_slice(&own.typed()[at..end]),
            Storage::Device(buffer) => {
                self.queue().read(buffer, at * size_of::<T>(), bytes_of_mut(numbers))?;
            }
        }
        Ok(())
    }

    /// A vector's numbers.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn read<T: Element>(&self, from: &GpuVec<T>) -> Result<Vec<T>> {
        match &from.storage {
            Storage::Shared(own) => Ok(own.typed().to_vec()),
            Storage::Device(buffer) => {
                // Read into pages, which are aligned for numbers of every type.
                let mut bytes = AlignedBuffer::zeroed(from.len * size_of::<T>())
                    .map_err(|e| GpuError::NoDevice(e.to_string()))?;
                self.queue().read(buffer, 0, bytes.as_mut_slice())?;
                Ok(bytes.typed().to_vec())
            }
        }
    }
}

/// Numbers as bytes.
pub(super) fn bytes_of<T: Element>(numbers: &[T]) -> &[u8] {
    // SAFETY: an `Element` has no padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// Numbers as bytes, for writing.
fn bytes_of_mut<T: Element>(numbers: &mut [T]) -> &mut [u8] {
    // SAFETY: an `Element` has no padding, and any bytes are one.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}
