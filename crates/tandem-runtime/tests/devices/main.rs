//! The engine with a GPU against the data of `transformers`: everything on the GPU, the usual partition, and matrices
//! shared out to both devices, on every OpenCL device and with every way of sharing memory that this machine has.
//!
//! As for the conformance suite of `tandem-gpu`, `cargo xtask test` installs the devices.

#[path = "../../../tandem-gpu/tests/conformance/runtimes.rs"]
#[allow(dead_code)] // the names of platforms are for the conformance suite
mod runtimes;
#[path = "../support/mod.rs"]
mod support;

mod golden;

use std::path::Path;
use std::sync::Arc;

use support::Setup;
use tandem_cpu::{Cpu, ThreadTeam};
use tandem_gpu::{Gpu, GpuOptions, ProgramCache, Sharing};
use tandem_memory::{KvType, Packing};
use tandem_model::{Checkpoint, PhimoeConfig};
use tandem_runtime::plan::{Plan, Planner};
use tandem_runtime::{Executor, Model, Threads};

/// Tokens of a batch: prompts take more than one.
const BATCH: usize = 20;

/// Every way of using every device that differs for an executor: kernels in all their ways are the conformance suite's.
fn on_every_gpu(check: impl Fn(&str, &dyn Fn() -> Gpu)) {
    for device in runtimes::devices() {
        let open = |sharing| {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
            let cache = Some(ProgramCache::in_folder(folder, 256 << 20));
            let options = GpuOptions { sharing, cache, ..GpuOptions::default() };
            Gpu::open(device.clone(), options).expect("the device opens")
        };
        let best = open(None).memory().sharing();
        let ways = if best == Sharing::UsmHost {
            &[Sharing::UsmHost, Sharing::HostPointer][..]
        } else {
            &[Sharing::HostPointer]
        };
        for &sharing in ways {
            let what = format!("{}, {sharing:?}", device.info().full_name());
            check(&what, &|| open(Some(sharing)));
        }
    }
}

/// An executor on a GPU and two threads, which follows one plan.
fn setup(
    gpu: Gpu,
    folder: &Path,
    packing: Packing,
    kv_type: KvType,
    plan: impl Fn(&PhimoeConfig) -> Plan,
) -> Setup {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let model = Model::load_in(gpu.memory(), &checkpoint, packing, 2, &|_| {}).unwrap();
    let cpu = Cpu::new(ThreadTeam::new(2).unwrap());
    let planner = Planner::fixed(plan(model.config()));
    let threads = Threads::same(2);
    let executor =
        Executor::with_devices(Arc::new(model), cpu, threads, BATCH, Some(gpu), planner).unwrap();
    let kv = executor.kv_cache(executor.model().config().context_length, kv_type).unwrap();
    Setup { executor, kv }
}
