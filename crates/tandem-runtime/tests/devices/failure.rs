//! A GPU that fails in the middle of a text: the text goes on, token by token the reference's.

use tandem_golden::{golden, golden_model};
use tandem_gpu::Fault;
use tandem_memory::{KvType, Packing};
use tandem_runtime::{LogitsFor, RouterTrace, evaluate};

use super::support::BOUND;
use super::{PLANS, all_on_the_gpu, greedy, on_every_gpu, on_every_shared_memory, setup};

/// When each kind of failure comes, as the number of occasions that pass before it, and what is said of it.
const FAULTS: [(Fault, [usize; 2], &str); 5] = [
    (Fault::Allocation, [0, 5], "memory: a test wants it so"),
    (Fault::Build, [0, 1], "does not compile for"),
    (Fault::Enqueue, [3, 300], "clEnqueueNDRangeKernel failed"),
    (Fault::TimeOut, [0, 7], "hangs, or is far too slow"),
    (Fault::DeviceLost, [0, 7], "clFinish failed"),
];

#[test]
fn the_text_goes_on_with_equal_tokens() {
    let prompt = &golden()[1];
    on_every_gpu(|what, gpu| {
        // All on the GPU, a partition, and everything split.
        for plan in [PLANS[0], PLANS[1], PLANS[4]] {
            for (fault, counts, reason) in FAULTS {
                for count in counts {
                    let mut setup =
                        setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, plan);
                    setup.executor.gpu().unwrap().fail_after(count, fault);
                    let ids = greedy(&mut setup, &prompt.ids, prompt.greedy.len());
                    let what = format!("{what}, {fault:?} after {count}");
                    assert_eq!(ids, prompt.greedy, "{what}");
                    let failure = setup.executor.gpu_failure().map(ToString::to_string);
                    assert!(
                        failure.as_ref().is_some_and(|f| f.contains(reason)),
                        "{what}: {failure:?}"
                    );
                    assert!(setup.executor.gpu().is_none(), "{what}");
                }
            }
        }
    });
}

/// What was listened to before the failure must not be heard twice.
#[test]
fn choices_are_recorded_once() {
    let prompt = &golden()[2];
    on_every_gpu(|what, gpu| {
        let mut setup =
            setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, all_on_the_gpu);
        setup.executor.gpu().unwrap().fail_after(2, Fault::TimeOut);
        setup.check_prompt(prompt, BOUND);
        assert!(setup.executor.gpu_failure().is_some(), "{what}");
        let mut trace = RouterTrace::default();
        evaluate(
            &mut setup.executor,
            &mut setup.kv,
            &prompt.ids,
            LogitsFor::Last,
            Some(&mut trace),
        )
        .unwrap();
        assert!(trace.routing.iter().all(|layer| layer.len() == prompt.ids.len()), "{what}");
    });
}

/// A cache that only the CPU can address is no reason to stop, but one to say.
#[test]
fn foreign_memory_is_refused_by_name() {
    let prompt = &golden()[0];
    on_every_shared_memory(|what, gpu| {
        let mut setup =
            setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, all_on_the_gpu);
        let c = setup.executor.model().config();
        let (layers, heads, dim) = (c.n_layers, c.n_kv_heads, c.head_dim);
        setup.kv = tandem_memory::KvCache::new(layers, heads, dim, 64, KvType::F32).unwrap();
        setup.check_prompt(prompt, BOUND);
        let failure = setup.executor.gpu_failure().unwrap().to_string();
        assert!(failure.contains("were not allocated for"), "{what}: {failure}");
    });
}
