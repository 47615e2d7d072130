//! The GPU's share of the work: OpenCL devices, memory they share with the CPU, and the operations of a forward pass.
//!
//! - [`devices`], [`choose`], [`find_device`]: what this machine has, what is used, and why another is not.
//!   libOpenCL is opened at run time; without it there are no devices, and a reason.
//! - [`SharedMemory`]: an allocator for weights, KV cache and activations that both sides address, with no copy.
//! - [`Gpu`]: a device in use. Kernels are enqueued in a [`Scope`], to which memory is lent; its end waits.
//! - [`ops`]: the operations, with their shapes checked. Kernels are in `kernels/`, one operation a file, each in
//!   three [paths](Path). One conformance suite (`tests/conformance`) runs against every device and path.
//! - [`ExpertMemory`]: on a device with memory of its own, a cache of experts under a byte budget.
//! - [`measure`]: what a device's memory allows. [`doctor`]: why a GPU is not seen.

mod builds;
mod choice;
mod cl;
mod device;
pub mod doctor;
mod error;
mod expert_cache;
mod fault;
mod gpu;
pub mod measure;
mod memory;
pub mod ops;
mod path;
mod pinned;
mod program;
mod usm;

pub use builds::{TargetBuild, target_builds};
pub use choice::{DeviceChoice, Needed, Needs, Unused, choose, find_device, fits};
pub use device::{Device, DeviceInfo, DeviceKind, UsmKinds, devices};
pub use error::{GpuError, NoOpenCl, Result};
pub use expert_cache::{
    CacheOptions, CacheStatistics, ExpertCache, ExpertCacheSettings, ExpertId, ExpertMemory,
    ExpertShape, HeldExperts, MATRICES, ModelBytes, Prefetch,
};
#[doc(hidden)]
pub use fault::Fault;
pub use gpu::{Gpu, GpuOptions, GpuVec, Region, RegionMut, Scope};
pub use memory::{SharedMemory, Sharing};
pub use path::Path;
pub use program::{ProgramCache, Source};
