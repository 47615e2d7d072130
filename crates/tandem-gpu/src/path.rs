//! The ways in which kernels are written.
//!
//! The source of a kernel is one; what differs is how work-items of a tile exchange numbers and how four 8-bit
//! products are added, which `kernels/common.cl` hides behind a few macros.

use serde::Serialize;

use crate::device::{DeviceInfo, DeviceKind};

/// Work-items that share a tile: one for each of its 16 rows.
pub(crate) const LANES: usize = 16;
/// Work-items of a work-group, in every kernel.
pub(crate) const GROUP: usize = 256;

/// What a kernel may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Subgroups of 16, and dot products of four packed 8-bit integers in one instruction.
    Dot,
    /// Subgroups of 16.
    Subgroup,
    /// Products in vectors of 8 rows, a work-item each, for CPUs: their compilers put work-items into loops, which lanes
    /// that exchange numbers keep from becoming vectors. Otherwise as the next.
    Vector,
    /// OpenCL C 1.2 and local memory.
    Portable,
}

impl Path {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Dot, Self::Subgroup, Self::Vector, Self::Portable];

    /// Name, as in benchmark results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dot => "dot",
            Self::Subgroup => "subgroup",
            Self::Vector => "vector",
            Self::Portable => "portable",
        }
    }

    /// Work-items that a compute unit has at a time: OpenCL cannot be asked. Devices with subgroups that a kernel can
    /// ask for are Intel's, whose unit is 8 threads of 16 lanes; of others, units are as large as NVIDIA's, where
    /// there are any.
    pub(crate) const fn items_of_unit(self) -> usize {
        match self {
            Self::Dot | Self::Subgroup => 128,
            Self::Vector | Self::Portable => 2048,
        }
    }

    /// Work-items of a work-group, in products with packed weights.
    pub(crate) const fn matmul_group(self) -> usize {
        match self {
            // The two halves of a tile.
            Self::Vector => 2,
            _ => GROUP,
        }
    }

    /// Tokens and tiles that a team takes of a product at a time, at most, where activations have so many planes. A lane
    /// has a sum for each in a register: more of them are spilled on Meteor Lake (`cargo xtask kernels`), while twice as
    /// many are twice as fast on NVIDIA's.
    pub(crate) const fn team(self, planes: usize) -> (usize, usize) {
        match (self, planes) {
            (Self::Portable, _) => (8 / planes, 2),
            (Self::Vector, _) => (8 / planes, 1),
            (_, 1) => (8, 1),
            _ => (2, 1),
        }
    }

    /// Whether there are tensor cores for many tokens (`kernels/ptx.cl`).
    pub(crate) fn has_tensor_cores(self, device: &DeviceInfo) -> bool {
        self == Self::Portable && device.ptx_tensor_cores
    }

    /// Whether a launch may have several matrices, where a team has so many sums: with eight, Meteor Lake has no registers
    /// for the choice among them, and there is enough to do for each.
    pub(crate) const fn takes_several(self, sums: usize) -> bool {
        !matches!(self, Self::Dot | Self::Subgroup) || sums < 8
    }

    /// Whether a device has what it takes.
    pub fn runs_on(self, device: &DeviceInfo) -> bool {
        let subgroups = device.subgroup_sizes.contains(&LANES) && device.opencl_c >= (2, 0);
        match self {
            Self::Dot => subgroups && device.integer_dot_product,
            Self::Subgroup => subgroups,
            Self::Vector => device.kind == DeviceKind::Cpu,
            Self::Portable => true,
        }
    }

    /// Options of the compiler that choose the path in the kernels' source.
    pub(crate) fn options(self, device: &DeviceInfo) -> String {
        let mut flags = self.flags(device.subgroup_block_reads, device.exact_division);
        if self == Self::Subgroup && device.opencl_c < (3, 0) {
            flags[0] = "-cl-std=CL2.0".to_owned();
        }
        if self == Self::Portable && device.ptx_dot_product {
            flags.push("-DPTX_DOT".to_owned());
        }
        flags.join(" ")
    }

    /// The options for a device of OpenCL C 3.0, one by one.
    pub(crate) fn flags(self, block_reads: bool, exact_division: bool) -> Vec<String> {
        let mut flags = match self {
            // The least that a device can have: what compiles so runs everywhere.
            Self::Portable => vec!["-cl-std=CL1.2"],
            Self::Vector => vec!["-cl-std=CL1.2", "-DVECTORS"],
            Self::Subgroup => vec!["-cl-std=CL3.0", "-DSUBGROUPS"],
            Self::Dot => vec!["-cl-std=CL3.0", "-DSUBGROUPS", "-DDOT"],
        };
        if matches!(self, Self::Dot | Self::Subgroup) && block_reads {
            flags.push("-DBLOCK_READS");
        }
        if exact_division {
            flags.push("-cl-fp32-correctly-rounded-divide-sqrt");
        }
        flags.into_iter().map(str::to_owned).collect()
    }
}
