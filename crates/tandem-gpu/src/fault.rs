//! Failures on demand, so that tests can see what a program does when a device fails.

use std::cell::Cell;
use std::time::Duration;

use cl3::error_codes::{CL_DEVICE_NOT_AVAILABLE, CL_OUT_OF_RESOURCES, ClError};

use crate::error::{GpuError, Result};

/// What can be made to go wrong.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Memory for the device cannot be had.
    Allocation,
    /// A kernel does not compile.
    Build,
    /// A kernel is not taken.
    Enqueue,
    /// The device takes too long.
    TimeOut,
    /// The device is lost while it is waited for, and for good.
    DeviceLost,
}

/// The fault that is to come.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    armed: Cell<Option<(Fault, usize)>>,
    lost: Cell<bool>,
}

impl Faults {
    /// Lets `count` occasions pass, and has the next one fail.
    pub(crate) fn arm(&self, fault: Fault, count: usize) {
        self.armed.set(Some((fault, count)));
    }

    /// An occasion for a fault.
    pub(crate) fn occasion(&self, fault: Fault, call: &'static str) -> Result<()> {
        if self.lost.get() {
            return Err(GpuError::Call { call, code: ClError(CL_DEVICE_NOT_AVAILABLE) });
        }
        match self.armed.get() {
            Some((armed, 0)) if armed == fault => {
                self.armed.set(None);
                self.lost.set(fault == Fault::DeviceLost);
                Err(match fault {
                    Fault::TimeOut => GpuError::TimedOut(Duration::ZERO),
                    Fault::DeviceLost => {
                        GpuError::Call { call, code: ClError(CL_DEVICE_NOT_AVAILABLE) }
                    }
                    _ => GpuError::Call { call, code: ClError(CL_OUT_OF_RESOURCES) },
                })
            }
            Some((armed, count)) if armed == fault => {
                self.armed.set(Some((armed, count - 1)));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
