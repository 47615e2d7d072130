//! An engine's devices and plans, for those who look at it.

use serde::Serialize;
use tandem_model::PhimoeConfig;

use super::control::Steering;
use crate::device::Device;
use crate::executor::Executor;
use crate::plan::{PassSize, Placement, Plan};

/// A device that computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceDescription {
    /// Which.
    pub device: Device,
    /// Its name.
    pub name: String,
    /// With what it computes: threads and instruction set, or driver and kernels.
    pub details: String,
    /// Bytes of memory that it can use; none where nobody knows.
    pub memory_bytes: Option<u64>,
    /// Why it was put aside, if it was: the other one computes everything since.
    pub failure: Option<String>,
}

impl DeviceDescription {
    /// What has become of it, if it is the GPU.
    pub(super) fn note(&mut self, gpu_failure: Option<&str>) {
        if self.device == Device::Igpu {
            self.failure = gpu_failure.map(ToOwned::to_owned);
        }
    }
}

/// Where a step is computed, and why there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepDescription {
    /// Its layer; none for what a token meets once.
    pub layer: Option<u16>,
    /// What is computed.
    pub operation: &'static str,
    /// `cpu`, `igpu`, or `split=R` with the GPU's part of the rows.
    pub device: String,
    /// Why there.
    pub reason: String,
}

/// The devices of an executor, the CPU first.
pub(super) fn devices(executor: &Executor, cpu_name: Option<String>) -> Vec<DeviceDescription> {
    let threads = executor.threads();
    let cpu = DeviceDescription {
        device: Device::Cpu,
        name: cpu_name.unwrap_or_else(|| "CPU".to_owned()),
        details: format!(
            "{} threads ({} for prompts), {}",
            threads.decode,
            threads.prefill,
            executor.isa()
        ),
        memory_bytes: None,
        failure: None,
    };
    let gpu = executor.gpu().map(|gpu| {
        let info = gpu.device().info();
        DeviceDescription {
            device: Device::Igpu,
            name: info.full_name(),
            details: format!("driver {}, {} kernels", info.driver, gpu.path().name()),
            memory_bytes: Some(info.memory),
            failure: None,
        }
    });
    [cpu].into_iter().chain(gpu).collect()
}

/// The steps of a pass, as they are with the devices that there are.
pub(super) fn steps(
    config: &PhimoeConfig,
    steering: &Steering,
    pass: PassSize,
    has_gpu: bool,
    gpu_failure: Option<&str>,
) -> Vec<StepDescription> {
    let Steering { partition, choices, .. } = steering;
    let plan = Plan::everything(config, Placement::Cpu);
    let describe = |(operation, layer): (crate::Operation, Option<u16>)| {
        let decision =
            partition.decide(config, choices.as_ref(), pass, operation, layer.map(usize::from));
        let (placement, reason) = match gpu_failure {
            _ if !decision.placement.uses_igpu() => {
                (decision.placement, decision.reason.to_string())
            }
            Some(failure) => (Placement::Cpu, format!("the GPU failed: {failure}")),
            None if !has_gpu => (Placement::Cpu, "there is no GPU".to_owned()),
            None => (decision.placement, decision.reason.to_string()),
        };
        let (operation, device) = (operation.name(), placement.to_string());
        StepDescription { layer, operation, device, reason }
    };
    plan.steps().map(|step| (step.operation, step.layer)).map(describe).collect()
}
