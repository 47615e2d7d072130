//! Whatever decides where steps are computed, and however far a GPU that fails has been given up: the same tokens.

use std::path::Path;

use tandem_golden::{golden, golden_model, stories, stories_bf16};
use tandem_gpu::Fault;
use tandem_memory::{KvType, Packing};
use tandem_runtime::partition::{DegradationStep as D, Partition};
use tandem_runtime::policy::PolicyKind;
use tandem_runtime::{Executor, LogitsFor};

use super::support::Setup;
use super::{all_on_the_gpu, greedy, on_every_gpu, on_every_plan, setup};

/// What a config says, for the model of an executor.
fn config(executor: &Executor, text: &str) -> Partition {
    Partition::parse(Path::new("p.yaml"), text, executor.model().config(), &[]).unwrap()
}

fn direct(setup: &mut Setup, text: &str, policy: PolicyKind) {
    let partition = config(&setup.executor, text);
    setup.executor.direct(&partition, None, policy, None);
}

#[test]
fn every_policy_writes_the_reference_s_tokens() {
    let prompt = &stories()[0];
    on_every_plan(|what, gpu, plan| {
        let mut setup = setup(gpu, &stories_bf16(), Packing::AsInFile, KvType::F32, plan);
        for policy in PolicyKind::ALL {
            for text in ["", "global: {enable_pipelining: false}"] {
                direct(&mut setup, text, policy);
                assert_eq!(setup.executor.policy(), policy);
                let ids = greedy(&mut setup, &prompt.ids, prompt.greedy.len());
                assert_eq!(ids, prompt.greedy, "{what}, {policy}, {text}");
            }
        }
        assert!(setup.executor.gpu_failure().is_none(), "{what}");
    });
}

/// One token of a text that goes on for ever.
fn token(setup: &mut Setup) {
    let Setup { executor, kv } = setup;
    executor.forward(&[7], kv, LogitsFor::Last, None).unwrap();
}

#[test]
fn a_gpu_that_fails_is_given_up_step_by_step() {
    let prompt = &golden()[1];
    on_every_gpu(|what, gpu| {
        let mut setup =
            setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, all_on_the_gpu);
        direct(&mut setup, "global: {micro_batch_size: 4}", PolicyKind::Static);
        let before = setup.executor.pass_limit();
        let expected = [
            D::ReduceMicroBatchSize,
            D::DisablePipelining,
            D::FallbackExpertsToCpu,
            D::FullCpuMode,
        ];
        for (n, _) in expected.iter().enumerate() {
            assert!(setup.executor.gpu().is_some(), "{what}: put aside before step {n}");
            setup.executor.gpu().unwrap().fail_after(0, Fault::TimeOut);
            let ids = greedy(&mut setup, &prompt.ids, prompt.greedy.len());
            assert_eq!(ids, prompt.greedy, "{what}, step {n}");
            let taken: Vec<D> = setup.executor.degradations().iter().map(|d| d.step).collect();
            assert_eq!(taken, expected[..=n], "{what}");
            // Whatever it fell back to works without failures, too.
            assert_eq!(greedy(&mut setup, &prompt.ids, prompt.greedy.len()), prompt.greedy);
        }
        assert_eq!(setup.executor.pass_limit(), before / 2, "{what}");
        assert!(setup.executor.gpu().is_none() && setup.executor.gpu_failure().is_some());
        let reasons = setup.executor.degradations().iter().map(|d| &d.reason);
        assert!(
            reasons.clone().all(|reason| reason.contains("hangs")),
            "{:?}",
            reasons.collect::<Vec<_>>()
        );
    });
}

#[test]
fn steps_back_come_in_the_order_of_the_config_and_only_those() {
    on_every_gpu(|what, gpu| {
        let taken = |text: &str, failures: usize| {
            let mut setup =
                setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, all_on_the_gpu);
            direct(&mut setup, text, PolicyKind::Static);
            for _ in 0..failures {
                if let Some(gpu) = setup.executor.gpu() {
                    gpu.fail_after(0, Fault::TimeOut);
                }
                token(&mut setup);
            }
            setup.executor.degradations().iter().map(|d| d.step).collect::<Vec<D>>()
        };
        let steps = "fallback: {degradation_steps: [fallback_experts_to_cpu, full_cpu_mode]}";
        assert_eq!(taken(steps, 1), [D::FallbackExpertsToCpu], "{what}");
        assert_eq!(taken(steps, 2), [D::FallbackExpertsToCpu, D::FullCpuMode], "{what}");
        // A step that would change nothing is left out; after the last one the GPU is put aside.
        let off = "global: {enable_pipelining: false}\n\
                   fallback: {degradation_steps: [disable_pipelining, reduce_micro_batch_size]}";
        assert_eq!(taken(off, 1), [D::ReduceMicroBatchSize], "{what}");
        assert_eq!(taken(off, 2), [D::ReduceMicroBatchSize, D::FullCpuMode], "{what}");
        let none = "fallback: {degradation_steps: []}";
        assert_eq!(taken(none, 1), [D::FullCpuMode], "{what}");
    });
}

#[test]
fn failures_that_nothing_is_to_be_done_about_end_the_pass() {
    on_every_gpu(|what, gpu| {
        for (text, fault, ends) in [
            ("fallback: {enable_cpu_fallback: false}", Fault::TimeOut, true),
            ("fallback: {fallback_triggers: [igpu_error]}", Fault::TimeOut, true),
            ("fallback: {fallback_triggers: [igpu_error]}", Fault::Enqueue, false),
            ("fallback: {fallback_triggers: [igpu_kernel_timeout]}", Fault::TimeOut, false),
            ("fallback: {fallback_triggers: [igpu_kernel_timeout]}", Fault::Enqueue, true),
            ("fallback: {fallback_triggers: [igpu_allocation_failure]}", Fault::Allocation, false),
            ("fallback: {fallback_triggers: [igpu_error]}", Fault::Allocation, true),
        ] {
            let mut setup =
                setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, all_on_the_gpu);
            direct(&mut setup, text, PolicyKind::Static);
            setup.executor.gpu().unwrap().fail_after(0, fault);
            let Setup { executor, kv } = &mut setup;
            let result = executor.forward(&[3, 5], kv, LogitsFor::Last, None).map(<[f32]>::len);
            assert_eq!(result.is_err(), ends, "{what}, {text}, {fault:?}: {result:?}");
            // Nothing of a pass that has failed is there, and the next one is as good as any.
            assert_eq!(kv.len(), if ends { 0 } else { 2 }, "{what}");
            executor.forward(&[3, 5], kv, LogitsFor::Last, None).unwrap();
        }
    });
}
