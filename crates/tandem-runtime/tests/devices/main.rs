//! The engine with a GPU against the data of `transformers`: everything on the GPU, the usual partition, and matrices
//! shared out to both devices, on every OpenCL device and with every way of sharing memory that this machine has.
//!
//! As for the conformance suite of `tandem-gpu`, `cargo xtask test` installs the devices.

#[path = "../support/operations.rs"]
mod one_by_one;
#[path = "../../../tandem-gpu/tests/conformance/runtimes.rs"]
#[allow(dead_code)] // the names of platforms are for the conformance suite
mod runtimes;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/watched.rs"]
mod watched_support;

mod experts;
mod failure;
mod golden;
mod operations;
mod packed;
mod pages;
mod pipeline;
mod policies;
mod watched;
mod work;

use std::path::Path;
use std::sync::Arc;

use support::Setup;
use tandem_cpu::{Cpu, ThreadTeam};
use tandem_gpu::{Device, ExpertCacheSettings, Gpu, GpuOptions, ProgramCache, Sharing};
use tandem_memory::{KvType, Packing};
use tandem_model::{Checkpoint, PhimoeConfig};
use tandem_runtime::plan::{Placement, Plan, Planner};
use tandem_runtime::{Executor, LogitsFor, Model, Operation as Op, Threads};

/// Tokens of a batch: prompts take more than one.
const BATCH: usize = 20;

/// Takes a device into use.
fn open(device: &Device, sharing: Option<Sharing>) -> Gpu {
    open_with(device, sharing, ExpertCacheSettings::default())
}

/// The same, with wishes for the cache of experts.
fn open_with(device: &Device, sharing: Option<Sharing>, experts: ExpertCacheSettings) -> Gpu {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    let cache = Some(ProgramCache::in_folder(folder, 256 << 20));
    let options = GpuOptions { sharing, cache, experts, ..GpuOptions::default() };
    Gpu::open(device.clone(), options).expect("the device opens")
}

/// Every way of using every device that differs for an executor: kernels in all their ways are the conformance suite's.
fn on_every_gpu(check: impl Fn(&str, &dyn Fn() -> Gpu)) {
    for device in runtimes::devices() {
        let best = open(device, None).memory().sharing();
        // Every device can also be used as if its memory were its own.
        let ways = match best {
            Sharing::UsmHost => &[Sharing::UsmHost, Sharing::HostPointer, Sharing::None][..],
            Sharing::HostPointer => &[Sharing::HostPointer, Sharing::None],
            Sharing::None => &[Sharing::None],
        };
        for &sharing in ways {
            let what = format!("{}, {sharing:?}", device.info().full_name());
            check(&what, &|| open(device, Some(sharing)));
        }
    }
}

/// Calls `check` with every device as it is at its best and all plans, and with every device as if its memory were its
/// own and those plans that differ most: for models that take time.
fn on_every_plan(check: impl Fn(&str, Gpu, PlanOf)) {
    for device in runtimes::devices() {
        let few = &[PLANS[0], PLANS[1], PLANS[4]][..];
        for (sharing, plans) in [(None, &PLANS[..]), (Some(Sharing::None), few)] {
            for (n, &plan) in plans.iter().enumerate() {
                let what = format!("{}, {sharing:?}, plan {n}", device.info().full_name());
                check(&what, open(device, sharing), plan);
            }
        }
    }
}

/// As [`on_every_gpu`], where memory is shared.
fn on_every_shared_memory(check: impl Fn(&str, &dyn Fn() -> Gpu)) {
    on_every_gpu(|what, gpu| {
        if gpu().memory().sharing() != Sharing::None {
            check(what, gpu);
        }
    });
}

type PlanOf = fn(&PhimoeConfig) -> Plan;

/// Ways of sharing out a pass.
const PLANS: [PlanOf; 6] = [
    |config| Plan::everything(config, Placement::Igpu),
    partition,
    |config| Plan::everything(config, Placement::Split(0.0)),
    |config| Plan::everything(config, Placement::Split(0.3)),
    |config| Plan::everything(config, Placement::Split(0.5)),
    |config| Plan::everything(config, Placement::Split(1.0)),
];

/// Large products and what lies between them on the GPU, what decides on the CPU; attention here and there.
fn partition(config: &PhimoeConfig) -> Plan {
    let mut plan = Plan::everything(config, Placement::Cpu);
    for operation in [
        Op::AttentionQkvProj,
        Op::AttentionOutputProj,
        Op::ExpertDispatch,
        Op::ExpertFfnW1,
        Op::ExpertFfnActivation,
        Op::ExpertFfnW2,
        Op::ExpertGather,
    ] {
        plan.set_everywhere(operation, Placement::Igpu);
    }
    plan.set(Op::AttentionCompute, Some(1), Placement::Igpu);
    plan
}

fn all_on_the_gpu(config: &PhimoeConfig) -> Plan {
    Plan::everything(config, Placement::Igpu)
}

/// Ids that are chosen one by one as the most likely, after a prompt.
fn greedy(setup: &mut Setup, prompt: &[u32], count: usize) -> Vec<u32> {
    let Setup { executor, kv } = setup;
    kv.clear();
    let mut next = |ids: &[u32]| {
        let best = executor.forward_top(ids, kv, LogitsFor::Last, 1, &|_| true).unwrap();
        best[0][0].1
    };
    let mut ids = Vec::new();
    let mut chosen = 0;
    for batch in prompt.chunks(BATCH) {
        chosen = next(batch);
    }
    while ids.len() < count {
        ids.push(chosen);
        chosen = next(&[chosen]);
    }
    ids
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
