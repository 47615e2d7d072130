//! Bytes by device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::Device;

/// Bytes that operations have read from memory and written to it, by device. Clones count together. Adding is one
/// atomic addition, and the devices' counters do not share a cache line.
#[derive(Clone, Debug, Default)]
pub struct ByteCounters(Arc<[CacheLine; Device::ALL.len()]>);

#[derive(Debug, Default)]
#[repr(align(64))]
struct CacheLine(AtomicU64);

impl ByteCounters {
    /// An operation on `device` has moved so many bytes.
    pub fn add(&self, device: Device, bytes: u64) {
        self.0[device as usize].0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes so far, in the order of [`Device::ALL`].
    pub fn totals(&self) -> [u64; Device::ALL.len()] {
        Device::ALL.map(|device| self.0[device as usize].0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_count_together_and_devices_apart() {
        let counters = ByteCounters::default();
        std::thread::scope(|scope| {
            for device in [Device::Cpu, Device::Igpu, Device::Igpu] {
                let counters = counters.clone();
                scope.spawn(move || (0..1000).for_each(|_| counters.add(device, 3)));
            }
        });
        assert_eq!(counters.totals(), [3000, 6000]);
    }
}
