//! What a pass makes the CPU and the GPU do.

use tandem_golden::{golden, golden_model};
use tandem_memory::{KvType, Packing};
use tandem_model::PhimoeConfig;
use tandem_runtime::plan::{Placement, Plan};
use tandem_runtime::{LogitsFor, Operation as Op};

use super::support::{BOUND, Setup};
use super::{PlanOf, all_on_the_gpu, on_every_gpu, on_every_shared_memory, partition, setup};

/// How often one token makes the CPU wait for the GPU.
fn waits(setup: &mut Setup) -> usize {
    let Setup { executor, kv } = setup;
    kv.clear();
    executor.forward(&[3, 5, 9, 11], kv, LogitsFor::Last, None).unwrap();
    let before = executor.gpu().unwrap().waits();
    executor.forward(&[7], kv, LogitsFor::Last, None).unwrap();
    executor.forward_top(&[8], kv, LogitsFor::Last, 1, &|_| true).unwrap();
    let waited = executor.gpu().unwrap().waits() - before;
    assert_eq!(waited % 2, 0, "the two tokens differ");
    waited / 2
}

#[test]
fn a_token_waits_once_where_all_is_on_the_gpu_and_else_where_devices_change() {
    on_every_gpu(|what, gpu| {
        let layers = 4;
        let plans: [(PlanOf, usize); 3] = [
            (all_on_the_gpu, 1),
            // q, k and v; o, which attention joins to them in one layer; and the experts, of each layer.
            (partition, 3 * layers - 1),
            // q, k and v; o; gate and up; down; and lm_head.
            (|config| Plan::everything(config, Placement::Split(0.5)), 4 * layers + 1),
        ];
        for (plan, expected) in plans {
            let mut setup = setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, plan);
            assert_eq!(waits(&mut setup), expected, "{what}");
        }
    });
}

/// With a cache of any type.
#[test]
fn attention_is_the_gpu_s_whatever_the_cache_is() {
    on_every_gpu(|what, gpu| {
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
            let mut setup =
                setup(gpu(), &golden_model(), Packing::AsInFile, kv_type, all_on_the_gpu);
            assert_eq!(setup.executor.gpu_refusal(Op::AttentionCompute), None);
            assert_eq!(waits(&mut setup), 1, "{what} {kv_type:?}");
            assert!(setup.executor.gpu_failure().is_none());
        }
    });
}

#[test]
fn the_profile_tells_the_devices_apart() {
    on_every_gpu(|what, gpu| {
        let plan = |config: &PhimoeConfig| {
            let mut plan = Plan::everything(config, Placement::Igpu);
            plan.set_everywhere(Op::LmHead, Placement::Split(0.5));
            plan.set_everywhere(Op::AttentionQkvProj, Placement::Cpu);
            plan
        };
        let mut setup = setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, plan);
        setup.executor.record_gpu_times(true);
        setup.check_prompt(&golden()[0], BOUND);
        let profile = setup.executor.profile();
        let (qkv, o, head) = (
            profile.cost(Op::AttentionQkvProj),
            profile.cost(Op::AttentionOutputProj),
            profile.cost(Op::LmHead),
        );
        assert!(qkv.bytes > 0 && qkv.gpu_bytes == 0 && qkv.gpu_time.is_zero(), "{what}: {qkv:?}");
        assert!(o.bytes == 0 && o.gpu_bytes > 0 && !o.gpu_time.is_zero(), "{what}: {o:?}");
        assert!(head.bytes == head.gpu_bytes && !head.gpu_time.is_zero(), "{what}: {head:?}");
    });
}

#[test]
fn weights_are_used_where_they_are() {
    on_every_shared_memory(|what, gpu| {
        let setup = setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, all_on_the_gpu);
        assert!(setup.executor.weights_are_in_place().unwrap(), "{what}");
    });
}
