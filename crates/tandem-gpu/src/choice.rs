//! Which device is used, and why another is not.

use std::str::FromStr;

use crate::device::{Device, DeviceInfo, DeviceKind};
use crate::error::{GpuError, Result};
use crate::path::GROUP;

/// Local memory that kernels take, at most.
pub(crate) const LOCAL_BYTES: u64 = 32 << 10;

/// What the user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best GPU, if there is one.
    Auto,
    /// The one whose name contains this text, whatever it is.
    Named(String),
}

impl FromStr for DeviceChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text.eq_ignore_ascii_case("auto") {
            Self::Auto
        } else {
            Self::Named(text.to_owned())
        })
    }
}

/// Bytes that a model needs of a device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// In all.
    pub bytes: u64,
    /// In one piece.
    pub largest: u64,
}

/// What a model needs of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of one that shares the CPU's memory.
    pub shared: Needed,
    /// Of one with memory of its own, which may have only some of the experts there at a time.
    pub own: Needed,
}

/// Why a device is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unused {
    /// Its driver says that it does not work.
    #[error("it is not available, has no compiler or is big-endian")]
    NotWorking,
    /// Its OpenCL is too old.
    #[error("OpenCL C {}.{} is too old: expected 1.2", .0.0, .0.1)]
    TooOld((u8, u8)),
    /// Kernels do not fit.
    #[error("work-groups of {found} work-items at most: expected {expected}")]
    WorkGroup {
        /// What it can do.
        found: usize,
        /// What kernels need.
        expected: usize,
    },
    /// Kernels do not fit.
    #[error("{found} bytes of local memory: expected {expected}")]
    LocalMemory {
        /// What it has.
        found: u64,
        /// What kernels need.
        expected: u64,
    },
    /// The model does not fit.
    #[error("too little memory: {expected} bytes needed, {found} there")]
    Memory {
        /// What it has.
        found: u64,
        /// What the model needs.
        expected: u64,
    },
    /// The model's weights are one allocation, and do not fit.
    #[error("too little memory in one piece: {expected} bytes needed, {found} possible")]
    Allocation {
        /// What it can do.
        found: u64,
        /// What the model needs.
        expected: u64,
    },
    /// It is the CPU under another name.
    #[error("it is the CPU, which computes anyway; used only where it is named")]
    IsCpu,
    /// Its name is not the one asked for.
    #[error("its name does not contain '{0}'")]
    OtherName(String),
    /// There is a better one.
    #[error("'{0}' is preferred")]
    NotBest(String),
}

/// Whether a device can run a model that needs so much.
///
/// # Errors
/// Says why it cannot.
pub fn fits(info: &DeviceInfo, needs: Needs) -> Result<(), Unused> {
    let Needed { bytes, largest } = if info.unified_memory { needs.shared } else { needs.own };
    if !info.working {
        return Err(Unused::NotWorking);
    }
    if info.opencl_c < (1, 2) {
        return Err(Unused::TooOld(info.opencl_c));
    }
    if info.max_work_group < GROUP {
        return Err(Unused::WorkGroup { found: info.max_work_group, expected: GROUP });
    }
    if info.local_memory < LOCAL_BYTES {
        return Err(Unused::LocalMemory { found: info.local_memory, expected: LOCAL_BYTES });
    }
    if info.memory < bytes {
        return Err(Unused::Memory { found: info.memory, expected: bytes });
    }
    if info.max_allocation < largest {
        return Err(Unused::Allocation { found: info.max_allocation, expected: largest });
    }
    Ok(())
}

/// For each device whether it is the one to use, and why not. At most one is used.
pub fn choose(
    devices: &[&DeviceInfo],
    choice: &DeviceChoice,
    needs: Needs,
) -> Vec<Result<(), Unused>> {
    let suits = |info: &DeviceInfo| {
        match choice {
            DeviceChoice::Named(name) => {
                if !info.full_name().to_lowercase().contains(&name.to_lowercase()) {
                    return Err(Unused::OtherName(name.clone()));
                }
            }
            DeviceChoice::Auto if info.kind == DeviceKind::Cpu => return Err(Unused::IsCpu),
            DeviceChoice::Auto => {}
        }
        fits(info, needs)
    };
    let mut verdicts: Vec<_> = devices.iter().map(|info| suits(info)).collect();
    // One memory is what Tandem is for; then size counts, and of equals the first.
    let rank = |i: &usize| (devices[*i].unified_memory, devices[*i].compute_units);
    let suitable = (0..devices.len()).filter(|&i| verdicts[i].is_ok());
    if let Some(best) = suitable.rev().max_by_key(rank) {
        for (i, verdict) in verdicts.iter_mut().enumerate() {
            if i != best && verdict.is_ok() {
                *verdict = Err(Unused::NotBest(devices[best].full_name()));
            }
        }
    }
    verdicts
}

/// The device to use.
///
/// # Errors
/// When there is no OpenCL, or no device suits; then with each one's reason.
pub fn find_device(choice: &DeviceChoice, needs: Needs) -> Result<Device> {
    let devices = crate::device::devices()?;
    let infos: Vec<_> = devices.iter().map(Device::info).collect();
    let verdicts = choose(&infos, choice, needs);
    match verdicts.iter().position(Result::is_ok) {
        Some(best) => Ok(devices[best].clone()),
        None if devices.is_empty() => {
            Err(GpuError::NoDevice("the installed drivers have no devices".to_owned()))
        }
        None => {
            let reasons = infos.iter().zip(&verdicts).filter_map(|(info, verdict)| {
                let reason = verdict.as_ref().err()?;
                Some(format!("{}: {reason}", info.full_name()))
            });
            Err(GpuError::NoDevice(reasons.collect::<Vec<_>>().join("; ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::UsmKinds;

    fn device(name: &str, kind: DeviceKind, unified_memory: bool) -> DeviceInfo {
        DeviceInfo {
            platform: "P".to_owned(),
            name: name.to_owned(),
            kind,
            driver: "1".to_owned(),
            opencl: "OpenCL 3.0".to_owned(),
            opencl_c: (1, 2),
            unified_memory,
            usm: UsmKinds::default(),
            subgroup_sizes: Vec::new(),
            subgroup_block_reads: false,
            fp16: false,
            integer_dot_product: false,
            ptx_dot_product: false,
            ptx_tensor_cores: false,
            exact_division: false,
            memory: 1 << 30,
            max_allocation: 1 << 29,
            local_memory: 48 << 10,
            compute_units: 8,
            max_work_group: 1024,
            working: true,
        }
    }

    /// As much of every device, all of it in one piece.
    fn needs(bytes: u64, largest: u64) -> Needs {
        let needed = Needed { bytes, largest };
        Needs { shared: needed, own: needed }
    }

    fn named(name: &str) -> DeviceChoice {
        name.parse().unwrap()
    }

    #[test]
    fn shared_memory_comes_before_size_and_cpus_only_by_name() {
        let cpu = device("Zen", DeviceKind::Cpu, true);
        let big = DeviceInfo { compute_units: 132, ..device("Big", DeviceKind::Gpu, false) };
        let arc = device("Arc", DeviceKind::Gpu, true);
        let all = [&cpu, &big, &arc];
        let preferred = || Err(Unused::NotBest("P: Arc".to_owned()));
        assert_eq!(
            choose(&all, &DeviceChoice::Auto, needs(1, 1)),
            [Err(Unused::IsCpu), preferred(), Ok(())]
        );
        let other = |name: &str| Err(Unused::OtherName(name.to_owned()));
        assert_eq!(choose(&all, &named("zen"), needs(1, 1)), [Ok(()), other("zen"), other("zen")]);
        assert_eq!(choose(&all, &named("p: b"), needs(1, 1))[1], Ok(()));
        assert!(choose(&all, &named("x"), needs(1, 1)).iter().all(Result::is_err));
        assert_eq!(named("AUTO"), DeviceChoice::Auto);
        assert!(choose(&[], &DeviceChoice::Auto, needs(1, 1)).is_empty());
    }

    #[test]
    fn the_first_of_equals_is_used() {
        let (a, b) = (device("A", DeviceKind::Gpu, true), device("B", DeviceKind::Gpu, true));
        assert_eq!(choose(&[&a, &b], &DeviceChoice::Auto, needs(1, 1))[0], Ok(()));
    }

    #[test]
    fn every_want_has_its_reason() {
        let good = device("G", DeviceKind::Gpu, true);
        let model = needs(1 << 30, 1 << 29);
        let says = |info: DeviceInfo| fits(&info, model).unwrap_err().to_string();
        assert!(fits(&good, model).is_ok());
        assert!(says(DeviceInfo { working: false, ..good.clone() }).contains("not available"));
        assert!(says(DeviceInfo { opencl_c: (1, 1), ..good.clone() }).contains("1.1 is too old"));
        assert!(says(DeviceInfo { max_work_group: 128, ..good.clone() }).contains("of 128 work"));
        assert!(says(DeviceInfo { local_memory: 1024, ..good.clone() }).contains("1024 bytes of"));
        let small = says(DeviceInfo { memory: 5, ..good.clone() });
        assert_eq!(small, "too little memory: 1073741824 bytes needed, 5 there");
        assert!(says(DeviceInfo { max_allocation: 6, ..good.clone() }).contains("in one piece"));
        // With memory of its own a device needs only some of the experts there.
        let some = Needs { own: Needed { bytes: 5, largest: 5 }, ..model };
        let small = DeviceInfo { memory: 5, unified_memory: false, ..good };
        assert!(fits(&small, some).is_ok());
        assert!(fits(&DeviceInfo { unified_memory: true, ..small }, some).is_err());
    }
}
