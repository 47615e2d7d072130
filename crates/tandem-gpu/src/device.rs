//! The devices of this machine, and what each can do.
//!
//! Everything is asked of the driver by capability queries: which extensions a device names says less than what it
//! answers about them.
#![allow(unsafe_code)]

use cl3::device as cl;
use cl3::error_codes::{ClError, DLOPEN_RUNTIME_LOAD_FAILED};
use cl3::platform::{CL_PLATFORM_NAME, get_platform_data, get_platform_ids};
use cl3::types::{cl_device_id, cl_platform_id};
use serde::Serialize;

use crate::error::NoOpenCl;
use crate::path::Path;

/// What `cl_intel_unified_shared_memory` calls `CL_UNIFIED_SHARED_MEMORY_ACCESS_INTEL`.
const USM_ACCESS: u64 = 1;
/// Queries of extensions, by their numbers in `cl_ext.h`.
const USM_HOST: u32 = 0x4190;
const USM_DEVICE: u32 = 0x4191;
const USM_SHARED: u32 = 0x4192;
const USM_SHARED_SYSTEM: u32 = 0x4194;
const SUBGROUP_SIZES: u32 = 0x4108;
const INTEGER_DOT_PRODUCT: u32 = 0x1073;
/// `cl_nv_device_attribute_query`.
const COMPUTE_CAPABILITY_MAJOR: u32 = 0x4000;
const COMPUTE_CAPABILITY_MINOR: u32 = 0x4001;
/// The compute capability that brought `dp4a` (PTX ISA 5.0).
const PTX_DOT_CAPABILITY: (u32, u32) = (6, 1);
/// The one that brought tensor cores' product of 16 x 32 and 32 x 8 8-bit integers (PTX ISA 7.0).
const PTX_TENSOR_CAPABILITY: (u32, u32) = (8, 0);
/// `CL_DEVICE_INTEGER_DOT_PRODUCT_INPUT_4x8BIT_PACKED`.
const DOT_4X8_PACKED: u64 = 1;

/// A device of OpenCL's.
#[derive(Clone, Debug)]
pub struct Device {
    pub(crate) platform: cl_platform_id,
    pub(crate) id: cl_device_id,
    info: DeviceInfo,
}

// SAFETY: the ids of platforms and root devices are valid in every thread until the process ends.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// What sort of processor a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A GPU.
    Gpu,
    /// The CPU, through an OpenCL implementation for CPUs.
    Cpu,
    /// Something else.
    Other,
}

/// Kinds of unified shared memory that a device can access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UsmKinds {
    /// Host memory from the driver.
    pub host: bool,
    /// The device's own, by pointer.
    pub device: bool,
    /// Memory that moves between both.
    pub shared: bool,
    /// Any memory of the process.
    pub shared_system: bool,
}

/// What a device is and can do.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceInfo {
    /// Name of the platform: the driver's vendor and kind.
    pub platform: String,
    /// Name of the device.
    pub name: String,
    /// Sort of processor.
    pub kind: DeviceKind,
    /// Version of the driver.
    pub driver: String,
    /// Version of OpenCL.
    pub opencl: String,
    /// Version of the kernel language, major and minor.
    pub opencl_c: (u8, u8),
    /// Whether the device works in the host's memory, rather than in memory of its own.
    pub unified_memory: bool,
    /// Unified shared memory.
    pub usm: UsmKinds,
    /// Subgroup sizes that a kernel may ask for; empty where it cannot.
    pub subgroup_sizes: Vec<usize>,
    /// Whether subgroups load blocks of memory in one message (`cl_intel_subgroups`).
    pub subgroup_block_reads: bool,
    /// Whether kernels can compute in 16-bit floats.
    pub fp16: bool,
    /// Whether kernels can multiply and add four 8-bit integers at a time, packed in 32 bits.
    pub integer_dot_product: bool,
    /// Whether kernels can do so by an instruction of NVIDIA's (`dp4a`), for which OpenCL C has no function there.
    pub ptx_dot_product: bool,
    /// The same of its tensor cores.
    pub ptx_tensor_cores: bool,
    /// Whether f32 division and square root can be asked to be exact to rounding.
    pub exact_division: bool,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the largest allocation.
    pub max_allocation: u64,
    /// Bytes of local memory.
    pub local_memory: u64,
    /// Compute units.
    pub compute_units: u32,
    /// Work-items of a work-group, at most.
    pub max_work_group: usize,
    /// Whether the device is there, has a compiler and is little-endian.
    pub working: bool,
}

impl Device {
    /// What it is and can do.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn query(platform: cl_platform_id, platform_name: &str, id: cl_device_id) -> Self {
        let q = Query(id);
        let kind = match q.u64(cl::CL_DEVICE_TYPE) {
            kind if kind & cl::CL_DEVICE_TYPE_GPU != 0 => DeviceKind::Gpu,
            kind if kind & cl::CL_DEVICE_TYPE_CPU != 0 => DeviceKind::Cpu,
            _ => DeviceKind::Other,
        };
        let extensions = q.text(cl::CL_DEVICE_EXTENSIONS);
        let has = |name: &str| extensions.split_ascii_whitespace().any(|e| e == name);
        // Sizes that cannot be asked for are of no use to kernels that are written for one.
        let subgroup_sizes = if has("cl_intel_required_subgroup_size") {
            q.sizes(SUBGROUP_SIZES)
        } else {
            Vec::new()
        };
        let opencl_c = version(&q.text(cl::CL_DEVICE_OPENCL_C_VERSION)).max(q.newest_c());
        let compute_capability =
            has("cl_nv_device_attribute_query").then(|| q.compute_capability());
        let exact = cl::CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT;
        let info = DeviceInfo {
            platform: platform_name.to_owned(),
            name: q.text(cl::CL_DEVICE_NAME),
            kind,
            driver: q.text(cl::CL_DRIVER_VERSION),
            opencl: q.text(cl::CL_DEVICE_VERSION),
            opencl_c,
            unified_memory: kind == DeviceKind::Cpu || q.flag(cl::CL_DEVICE_HOST_UNIFIED_MEMORY),
            usm: UsmKinds {
                host: q.u64(USM_HOST) & USM_ACCESS != 0,
                device: q.u64(USM_DEVICE) & USM_ACCESS != 0,
                shared: q.u64(USM_SHARED) & USM_ACCESS != 0,
                shared_system: q.u64(USM_SHARED_SYSTEM) & USM_ACCESS != 0,
            },
            subgroup_block_reads: has("cl_intel_subgroups") && has("cl_intel_subgroups_short"),
            subgroup_sizes,
            fp16: has("cl_khr_fp16"),
            integer_dot_product: opencl_c >= (3, 0)
                && q.u64(INTEGER_DOT_PRODUCT) & DOT_4X8_PACKED != 0,
            ptx_dot_product: compute_capability >= Some(PTX_DOT_CAPABILITY),
            ptx_tensor_cores: compute_capability >= Some(PTX_TENSOR_CAPABILITY),
            exact_division: q.u64(cl::CL_DEVICE_SINGLE_FP_CONFIG) & exact != 0,
            memory: q.u64(cl::CL_DEVICE_GLOBAL_MEM_SIZE),
            max_allocation: q.u64(cl::CL_DEVICE_MAX_MEM_ALLOC_SIZE),
            local_memory: q.u64(cl::CL_DEVICE_LOCAL_MEM_SIZE),
            compute_units: q.u32(cl::CL_DEVICE_MAX_COMPUTE_UNITS),
            max_work_group: q.usize(cl::CL_DEVICE_MAX_WORK_GROUP_SIZE),
            working: q.flag(cl::CL_DEVICE_AVAILABLE)
                && q.flag(cl::CL_DEVICE_COMPILER_AVAILABLE)
                && q.flag(cl::CL_DEVICE_ENDIAN_LITTLE),
        };
        Self { platform, id, info }
    }
}

impl DeviceInfo {
    /// The name that a person knows it by, and can choose it by.
    pub fn full_name(&self) -> String {
        format!("{}: {}", self.platform, self.name)
    }

    /// The ways of writing kernels that the device can run, best first.
    pub fn paths(&self) -> Vec<Path> {
        let mut paths: Vec<_> = Path::ALL.into_iter().filter(|path| path.runs_on(self)).collect();
        // Subgroups that exist for the sake of the standard are slower than vectors.
        if self.kind == DeviceKind::Cpu && !self.subgroup_block_reads {
            paths.sort_by_key(|&path| path != Path::Vector);
        }
        paths
    }
}

/// All devices of all platforms, in the loader's order.
///
/// # Errors
/// When there is no OpenCL at all. A platform without devices is none.
pub fn devices() -> Result<Vec<Device>, NoOpenCl> {
    let platforms = match get_platform_ids() {
        Ok(platforms) if platforms.is_empty() => return Err(no_platform()),
        Ok(platforms) => platforms,
        Err(DLOPEN_RUNTIME_LOAD_FAILED) => return Err(NoOpenCl::NoLibrary),
        Err(cl3::error_codes::CL_PLATFORM_NOT_FOUND_KHR) => return Err(no_platform()),
        Err(code) => return Err(NoOpenCl::Failed(ClError(code).to_string())),
    };
    let mut devices = Vec::new();
    for platform in platforms {
        let name = text(&get_platform_data(platform, CL_PLATFORM_NAME).unwrap_or_default());
        // A platform whose devices cannot be listed has none to use; `tandem doctor` says what to look at.
        let ids = cl::get_device_ids(platform, cl::CL_DEVICE_TYPE_ALL).unwrap_or_default();
        devices.extend(ids.into_iter().map(|id| Device::query(platform, &name, id)));
    }
    Ok(devices)
}

fn no_platform() -> NoOpenCl {
    let folder = std::env::var("OCL_ICD_VENDORS");
    NoOpenCl::NoPlatform(folder.unwrap_or_else(|_| "/etc/OpenCL/vendors".to_owned()))
}

/// Queries of one device. What a driver does not know counts as nothing.
struct Query(cl_device_id);

impl Query {
    fn bytes(&self, what: u32) -> Vec<u8> {
        cl::get_device_data(self.0, what).unwrap_or_default()
    }

    fn text(&self, what: u32) -> String {
        text(&self.bytes(what))
    }

    fn flag(&self, what: u32) -> bool {
        self.u32(what) != 0
    }

    fn u32(&self, what: u32) -> u32 {
        u32::try_from(self.u64(what)).unwrap_or(u32::MAX)
    }

    fn usize(&self, what: u32) -> usize {
        usize::try_from(self.u64(what)).unwrap_or(usize::MAX)
    }

    /// A number of up to 64 bits, as long as the driver makes it.
    fn u64(&self, what: u32) -> u64 {
        let mut number = [0; 8];
        let bytes = self.bytes(what);
        let len = bytes.len().min(8);
        number[..len].copy_from_slice(&bytes[..len]);
        u64::from_le_bytes(number)
    }

    fn compute_capability(&self) -> (u32, u32) {
        (self.u32(COMPUTE_CAPABILITY_MAJOR), self.u32(COMPUTE_CAPABILITY_MINOR))
    }

    fn sizes(&self, what: u32) -> Vec<usize> {
        let bytes = self.bytes(what);
        bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize).collect()
    }

    /// The newest version among those of `CL_DEVICE_OPENCL_C_ALL_VERSIONS`; the older query stops at 1.2 on devices
    /// that know 3.0.
    fn newest_c(&self) -> (u8, u8) {
        let versions = self.bytes(cl::CL_DEVICE_OPENCL_C_ALL_VERSIONS);
        // cl_name_version: a version in 10, 10 and 12 bits, and a name of 64 bytes.
        let versions = versions.as_chunks::<68>().0.iter();
        versions
            .map(|v| u32::from_le_bytes([v[0], v[1], v[2], v[3]]))
            .map(|v| ((v >> 22) as u8, (v >> 12) as u8))
            .max()
            .unwrap_or_default()
    }
}

/// What a driver calls a string: bytes up to a NUL, with spaces around it on some.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

/// The version in `OpenCL C 1.2 anything`.
fn version(text: &str) -> (u8, u8) {
    let number = text.split_ascii_whitespace().nth(2).unwrap_or_default();
    let (major, minor) = number.split_once('.').unwrap_or_default();
    (major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_and_versions_of_drivers() {
        assert_eq!(text(b"  Arc \0junk"), "Arc");
        assert_eq!(text(b""), "");
        assert_eq!(version("OpenCL C 1.2 PoCL"), (1, 2));
        assert_eq!(version("OpenCL C 3.0"), (3, 0));
        assert_eq!(version("nonsense"), (0, 0));
        assert_eq!(version("OpenCL C x.y"), (0, 0));
    }
}
