//! Failures on demand, so that tests can see what a program does when a device fails.

use std::cell::Cell;
use std::str::FromStr;
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

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [
            ("allocation", Self::Allocation),
            ("build", Self::Build),
            ("enqueue", Self::Enqueue),
            ("time-out", Self::TimeOut),
            ("device-lost", Self::DeviceLost),
        ];
        let found = all.iter().find(|(name, _)| *name == text).map(|(_, fault)| *fault);
        found.ok_or_else(|| format!("expected one of {}", all.map(|(name, _)| name).join(", ")))
    }
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

    /// Whether this is the occasion for a fault.
    ///
    /// # Errors
    /// When the device was lost before.
    pub(crate) fn is_due(&self, fault: Fault) -> Result<bool> {
        let result = self.occasion(fault, "clBuildProgram");
        if self.lost.get() { result.map(|()| false) } else { Ok(result.is_err()) }
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
