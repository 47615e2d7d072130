//! From the name of a machine profile to its figures.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use tandem_cpu::{Cpu, ThreadTeam, Topology, measure};
use tandem_memory::AlignedBuffer;
use tandem_onnx::analysis::{DeviceProfile, MachineProfile};

/// The machine that runs this program.
pub(super) const THIS: &str = "this";

/// Memory that is read to measure its bandwidth: many times the size of caches.
const READ_BYTES: usize = 512 << 20;

pub(super) fn profile(name: &str) -> anyhow::Result<MachineProfile> {
    if name == THIS {
        return measured();
    }
    let shipped = MachineProfile::shipped();
    if let Some(profile) = shipped.iter().find(|profile| profile.name == name) {
        return Ok(profile.clone());
    }
    if !Path::new(name).exists() {
        let known: Vec<&str> = shipped.iter().map(|profile| profile.name.as_str()).collect();
        bail!("--machine: expected `{THIS}`, {} or a JSON file, found `{name}`", known.join(", "));
    }
    Ok(MachineProfile::open(Path::new(name))?)
}

/// Takes about a second.
fn measured() -> anyhow::Result<MachineProfile> {
    let topology = Topology::detect();
    let threads = topology.default_threads();
    let team = ThreadTeam::new(threads).context("cannot start threads to measure with")?;
    let cpu = Cpu::new(Arc::new(team));
    let mut memory = AlignedBuffer::zeroed(READ_BYTES).context("cannot measure the memory")?;
    memory.advise_huge_pages();
    // Pages that were never written are all the same page of zeros.
    memory.as_mut_slice().fill(1);
    Ok(MachineProfile {
        name: THIS.to_owned(),
        description: format!("this machine's CPU with {threads} threads"),
        source: "measured just now; GPUs are not measured".to_owned(),
        shared_memory: true,
        memory_bytes: None,
        cpu: DeviceProfile {
            bytes_per_second: measure::read_bandwidth(&cpu, memory.typed::<u64>()),
            int8_per_second: measure::int8_peak(&cpu),
            f32_per_second: measure::float_peak(&cpu),
            handover_seconds: 0.0,
        },
        gpu: None,
        both_bytes_per_second: None,
    })
}
