//! Two micro-batches in flight, and experts shared out whole: the same numbers as ever.

use tandem_golden::{golden, golden_model, stories, stories_bf16};
use tandem_gpu::Fault;
use tandem_memory::{KvType, Packing};
use tandem_model::PhimoeConfig;
use tandem_runtime::plan::{ExpertRange, Placement, Plan};
use tandem_runtime::{Instrumentation, InstrumentationParams, Operation as Op};

use super::support::{BOUND, Setup, check_together};
use super::{BATCH, PlanOf, greedy, on_every_gpu, on_every_plan, partition, setup};

/// Experts of every other layer on the GPU, attention of the others: nothing is where it was in the layer before.
fn alternating(config: &PhimoeConfig) -> Plan {
    let mut plan = partition(config);
    for layer in (0..config.n_layers).step_by(2) {
        for operation in Op::ALL.into_iter().filter(|operation| operation.is_of_layers()) {
            let placement = match plan.placement(operation, Some(layer)) {
                Placement::Cpu => Placement::Igpu,
                _ => Placement::Cpu,
            };
            plan.set(operation, Some(layer), placement);
        }
    }
    plan
}

/// Some experts on each device, attention on the GPU.
fn by_expert(config: &PhimoeConfig) -> Plan {
    let mut plan = Plan::everything(config, Placement::Cpu);
    plan.set_everywhere(Op::AttentionCompute, Placement::Igpu);
    let range = ExpertRange { first: 1, last: 2 };
    for operation in [Op::ExpertFfnW1, Op::ExpertFfnW2] {
        plan.set_everywhere(operation, Placement::Experts(range));
    }
    plan
}

const MIXED: [PlanOf; 3] = [partition, alternating, by_expert];

#[test]
fn prompts_that_are_cut_in_two() {
    on_every_gpu(|what, gpu| {
        for (n, plan) in MIXED.into_iter().enumerate() {
            let mut setup = setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, plan);
            setup.executor.set_pipelining(Some(1));
            for mut prompt in golden() {
                prompt.name = format!("{what}, plan {n}, {}", prompt.name);
                setup.check_prompt(&prompt, BOUND);
                setup.check_greedy(&prompt);
            }
            assert!(setup.executor.gpu_failure().is_none(), "{what}");
            assert!(setup.executor.overlaps() > 0, "{what}, plan {n}: nothing overlapped");
        }
    });
}

#[test]
fn the_trained_model() {
    on_every_plan(|what, gpu, plan| {
        let mut setup = setup(gpu, &stories_bf16(), Packing::AsInFile, KvType::F32, plan);
        setup.executor.set_pipelining(Some(4));
        let mut prompt = stories().swap_remove(0);
        prompt.name = format!("{what}, {}", prompt.name);
        setup.check_prompt(&prompt, BOUND);
        setup.check_greedy(&prompt);
        assert!(setup.executor.gpu_failure().is_none(), "{what}");
    });
}

#[test]
fn texts_that_are_read_and_written_together() {
    on_every_gpu(|what, gpu| {
        for plan in MIXED {
            let setup = setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, plan);
            let (mut executor, prompts) = (setup.executor, golden());
            // Cut between texts, and within them: of one that is read, its later half attends to the earlier one's keys.
            for (least, chunk) in [(1, 1), (1, 3), (2, BATCH / prompts.len())] {
                executor.set_pipelining(Some(least));
                check_together(&mut executor, &prompts, KvType::F32, chunk, BOUND);
            }
            assert!(executor.gpu_failure().is_none(), "{what}");
            assert!(executor.overlaps() > 0, "{what}");
        }
    });
}

/// With the token, what reads much takes turns; and a lane that waits for a permit must not wait for the other lane's.
#[test]
fn heavy_operations_take_turns() {
    let prompt = &golden()[1];
    on_every_gpu(|what, gpu| {
        let mut setup = setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, partition);
        let params = InstrumentationParams {
            heavy: Some(tandem_runtime::bandwidth::HeavyOperations::default()),
            ..InstrumentationParams::default()
        };
        let instrumentation = Instrumentation::start(params).unwrap();
        setup.executor.set_instruments(instrumentation.instruments());
        setup.executor.set_pipelining(Some(1));
        setup.check_prompt(prompt, BOUND);
        let token = instrumentation.token_metrics();
        assert_eq!((token.timed_out, token.holders.len()), (0, 0), "{what}: {token:?}");
        assert!(token.granted_prefill > 0, "{what}: {token:?}");
        assert!(setup.executor.overlaps() > 0, "{what}");
    });
}

#[test]
fn a_gpu_that_fails_between_two_micro_batches() {
    let prompt = &golden()[1];
    on_every_gpu(|what, gpu| {
        for count in [0, 1, 3] {
            let mut setup =
                setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, partition);
            setup.executor.set_pipelining(Some(1));
            setup.executor.gpu().unwrap().fail_after(count, Fault::TimeOut);
            let ids = greedy(&mut setup, &prompt.ids, prompt.greedy.len());
            assert_eq!(ids, prompt.greedy, "{what}, after {count}");
            assert!(setup.executor.gpu_failure().is_some(), "{what}");
        }
    });
}

/// Without a GPU nothing is cut, and it is said so.
#[test]
fn without_a_gpu_there_is_nothing_to_overlap() {
    let checkpoint = tandem_model::Checkpoint::open(&golden_model()).unwrap();
    let model = tandem_runtime::Model::load(&checkpoint, 2, &|_| {}).unwrap();
    let mut executor = tandem_runtime::Executor::new(std::sync::Arc::new(model), 2, BATCH).unwrap();
    assert_eq!(executor.pipelining_refusal(), Some("it is turned off"));
    executor.set_pipelining(Some(1));
    let refusal = executor.pipelining_refusal();
    assert_eq!(refusal, Some("there is no GPU, so there is nothing to overlap"));
    let kv = executor.kv_cache(64, KvType::F32).unwrap();
    let mut setup = Setup { executor, kv };
    setup.check_prompt(&golden()[1], BOUND);
    assert_eq!(setup.executor.overlaps(), 0);
}
