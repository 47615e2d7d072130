//! Operations that are run one by one on a GPU.

use std::sync::Arc;

use tandem_cpu::{Cpu, ThreadTeam};
use tandem_golden::{golden, golden_model};
use tandem_memory::Packing;
use tandem_model::Checkpoint;
use tandem_runtime::plan::{Placement, Planner};
use tandem_runtime::{Executor, Model, Threads};

use super::on_every_gpu;
use super::one_by_one::OneByOne;
use super::support::BOUND;

#[test]
fn one_by_one_they_make_the_reference_s_logits() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    on_every_gpu(|what, gpu| {
        let (gpu, cpu) = (gpu(), Cpu::new(ThreadTeam::new(2).unwrap()));
        let model =
            Model::load_in(gpu.memory(), &checkpoint, Packing::AsInFile, 2, &|_| {}).unwrap();
        // The plan does not matter where it is said what computes.
        let planner = Planner::cpu(model.config());
        let (model, threads) = (Arc::new(model), Threads::same(2));
        let mut executor =
            Executor::with_devices(model, cpu, threads, 256, Some(gpu), planner).unwrap();
        for prompt in golden() {
            let placement = Some(Placement::Igpu);
            let mut pass = OneByOne { executor: &mut executor, placement, used: vec![] };
            pass.check(&prompt, BOUND);
            assert!(pass.used.iter().all(|&used| used == Placement::Igpu), "{what}");
        }
    });
}
