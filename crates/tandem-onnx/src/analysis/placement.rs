//! Where an operation should be computed: the roofline of each device.

use serde::Serialize;

use super::cost::Cost;
use super::machine::{DeviceProfile, MachineProfile};

/// A device, or both sharing out the rows of one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The CPU.
    Cpu,
    /// The GPU.
    Gpu,
    /// Both, each with some of the rows.
    Both,
}

/// What limits an operation on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Reading memory.
    Memory,
    /// Arithmetic.
    Arithmetic,
}

/// Where to compute, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placement {
    /// The device with the shortest time.
    pub device: Device,
    /// What limits it there.
    pub bound: Bound,
    /// The least time it can take there, all layers together.
    pub seconds: f64,
    /// The same on the CPU.
    pub cpu_seconds: f64,
    /// The same on the GPU, its hand-overs included.
    pub gpu_seconds: Option<f64>,
    /// Why there.
    pub reason: String,
}

/// Places an operation that is computed `times` times, once a layer.
pub fn place(machine: &MachineProfile, cost: Cost, is_quantized: bool, times: usize) -> Placement {
    let least = |device: &DeviceProfile| {
        let (memory, arithmetic) = roofline(device, cost, is_quantized);
        memory.max(arithmetic) + device.handover_seconds * times as f64
    };
    let cpu_seconds = least(&machine.cpu);
    let gpu_seconds = machine.gpu.as_ref().map(least);
    let both_seconds = both(machine, cost, is_quantized, times);
    let (mut device, mut seconds) = (Device::Cpu, cpu_seconds);
    for (other, time) in [(Device::Gpu, gpu_seconds), (Device::Both, both_seconds)] {
        if let Some(time) = time.filter(|&time| time < seconds) {
            (device, seconds) = (other, time);
        }
    }
    let limits = match (&machine.gpu, device) {
        (Some(gpu), Device::Gpu) => gpu,
        _ => &machine.cpu,
    };
    let (memory, arithmetic) = roofline(limits, cost, is_quantized);
    let bound = if memory >= arithmetic { Bound::Memory } else { Bound::Arithmetic };
    let reason = reason(device, bound, cpu_seconds, gpu_seconds, machine);
    Placement { device, bound, seconds, cpu_seconds, gpu_seconds, reason }
}

/// Seconds that memory and arithmetic take at least.
fn roofline(device: &DeviceProfile, cost: Cost, is_quantized: bool) -> (f64, f64) {
    let peak = if is_quantized { device.int8_per_second } else { device.f32_per_second };
    (cost.bytes as f64 / device.bytes_per_second, cost.arithmetic as f64 / peak)
}

/// Seconds with the rows shared out to both devices, where what they read together was measured.
fn both(machine: &MachineProfile, cost: Cost, is_quantized: bool, times: usize) -> Option<f64> {
    let (gpu, bandwidth) = (machine.gpu.as_ref()?, machine.both_bytes_per_second?);
    let peak = |d: &DeviceProfile| if is_quantized { d.int8_per_second } else { d.f32_per_second };
    let memory = cost.bytes as f64 / bandwidth;
    let arithmetic = cost.arithmetic as f64 / (peak(&machine.cpu) + peak(gpu));
    Some(memory.max(arithmetic) + gpu.handover_seconds * times as f64)
}

fn reason(
    device: Device,
    bound: Bound,
    cpu: f64,
    gpu: Option<f64>,
    machine: &MachineProfile,
) -> String {
    let what = match bound {
        Bound::Memory => "memory",
        Bound::Arithmetic => "arithmetic",
    };
    let ms = |seconds: f64| format!("{:.3} ms", 1e3 * seconds);
    match (device, gpu, &machine.gpu) {
        (Device::Both, ..) => format!("bound by {what}: together they are faster than either"),
        (Device::Gpu, Some(gpu), _) => {
            format!("bound by {what}: {} against {} on the CPU", ms(gpu), ms(cpu))
        }
        (_, Some(gpu), Some(profile)) if profile.handover_seconds > 0.0 => format!(
            "bound by {what}: {} against {} on the GPU, hand-overs included",
            ms(cpu),
            ms(gpu)
        ),
        (_, Some(gpu), _) => format!("bound by {what}: {} against {} on the GPU", ms(cpu), ms(gpu)),
        _ => format!("bound by {what}: {}; the profile has no GPU", ms(cpu)),
    }
}
