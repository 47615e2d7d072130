//! A model that the GPU uses is in memory once. In a process of its own, whose size nothing else changes.

#[path = "../../tandem-gpu/tests/conformance/runtimes.rs"]
#[allow(dead_code)] // the names of platforms are for the conformance suite
mod runtimes;

use std::sync::Arc;

use tandem_cpu::{Cpu, ThreadTeam};
use tandem_golden::stories_bf16;
use tandem_gpu::{Device, Gpu, GpuOptions, Sharing};
use tandem_memory::{KvType, Packing};
use tandem_model::Checkpoint;
use tandem_runtime::plan::{Placement, Plan, Planner};
use tandem_runtime::{Executor, LogitsFor, Model, Threads};

/// Bytes of this process that are in RAM.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Bytes of the model, and those that come on top when the GPU computes with it.
fn run(device: &Device, sharing: Sharing) -> Option<(usize, usize)> {
    let options = GpuOptions { sharing: Some(sharing), ..GpuOptions::default() };
    let gpu = Gpu::open(device.clone(), options).unwrap();
    if gpu.memory().sharing() != sharing {
        return None;
    }
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let packing = Packing::AsInFile;
    let model = Arc::new(Model::load_in(gpu.memory(), &checkpoint, packing, 2, &|_| {}).unwrap());
    let size = model.n_bytes();
    let before = resident();
    let cpu = Cpu::new(ThreadTeam::new(1).unwrap());
    let planner = Planner::fixed(Plan::everything(model.config(), Placement::Igpu));
    let threads = Threads::same(1);
    let mut executor = Executor::with_devices(model, cpu, threads, 1, Some(gpu), planner).unwrap();
    assert!(executor.weights_are_in_place().unwrap(), "{sharing:?}");
    let mut kv = executor.kv_cache(16, KvType::F16).unwrap();
    executor.forward(&[1], &mut kv, LogitsFor::Last, None).unwrap();
    assert!(executor.gpu_failure().is_none());
    Some((size, resident().saturating_sub(before)))
}

#[test]
fn no_weight_is_copied() {
    for device in runtimes::devices() {
        for sharing in [Sharing::UsmHost, Sharing::HostPointer] {
            // Compilers take memory of their own, the first time.
            run(device, sharing);
            if let Some((size, grown)) = run(device, sharing) {
                let what = format!("{}, {sharing:?}", device.info().full_name());
                assert!(grown < size / 2, "{what}: {grown} bytes more for a model of {size}");
            }
        }
    }
}
