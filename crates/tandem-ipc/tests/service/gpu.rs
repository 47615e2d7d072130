//! A GPU that fails while a text is streamed. OpenCL implementations for CPUs take its place, as `cargo xtask test` installs
//! them.

#[path = "../../../tandem-gpu/tests/conformance/runtimes.rs"]
#[allow(dead_code)] // the names of platforms are for the conformance suite
mod runtimes;

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tandem_cpu::{Cpu, ThreadTeam};
use tandem_golden::{stories, stories_bf16};
use tandem_gpu::{Fault, Gpu, GpuOptions, ProgramCache};
use tandem_memory::Packing;
use tandem_model::Checkpoint;
use tandem_runtime::plan::{Placement, Plan, Planner};
use tandem_runtime::{Executor, Model};

use crate::support::{OPTIONS, Running, greedy, ids_of, two};

#[test]
fn a_gpu_that_fails_in_mid_stream_costs_no_token() {
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let story = &stories()[0];
    for device in runtimes::devices() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
        let cache = Some(ProgramCache::in_folder(folder, 256 << 20));
        let gpu = Gpu::open(device.clone(), GpuOptions { cache, ..GpuOptions::default() }).unwrap();
        let model =
            Model::load_in(gpu.memory(), &checkpoint, Packing::AsInFile, 2, &|_| {}).unwrap();
        let plan = Plan::everything(model.config(), Placement::Igpu);
        let (cpu, planner) = (Cpu::new(ThreadTeam::new(2).unwrap()), Planner::fixed(plan));
        let executor =
            Executor::with_devices(Arc::new(model), cpu, two(), 64, Some(gpu), planner).unwrap();
        let server = Running::serve(&checkpoint, executor, OPTIONS, "tcp://127.0.0.1:0", None);
        let (peer, steering) = (server.dealer(), server.req());
        let health = steering.ask(&json!({"type": "health_check"}));
        assert_eq!(health["igpu_available"], true, "{health}");
        peer.send(&greedy("text", &story.ids, story.greedy.len(), true));
        let mut ids = Vec::new();
        let mut failing = false;
        loop {
            let answer = peer.answer();
            match answer["event"].as_str().unwrap() {
                "tokens" => ids.extend(ids_of(&answer["ids"])),
                "finished" => break,
                _ => {}
            }
            if ids.len() >= 3 && !std::mem::replace(&mut failing, true) {
                let fail = |executor: &mut Executor| {
                    executor.gpu().expect("a GPU").fail_after(5, Fault::Enqueue);
                };
                server.engine.run_on_executor(fail).unwrap();
            }
        }
        assert_eq!(ids, story.greedy, "{}", device.info().full_name());
        // A packet for it says what computed it.
        let health = steering.ask(&json!({"type": "health_check"}));
        assert_eq!(health["igpu_available"], false, "{health}");
        let failure = health["devices"][1]["failure"].as_str().unwrap();
        assert!(failure.contains("clEnqueueNDRangeKernel"), "{failure}");
    }
}
