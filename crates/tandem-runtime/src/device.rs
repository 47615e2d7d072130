//! The two devices of a machine.

use serde::Serialize;

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor's cores.
    Cpu,
    /// The integrated GPU, or whatever OpenCL device stands in for it.
    Igpu,
}

impl Device {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cpu, Self::Igpu];

    /// The name in configs, tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Igpu => "igpu",
        }
    }
}
