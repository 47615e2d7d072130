//! Logits, router choices and greedy tokens.

use tandem_golden::{golden, golden_model, stories, stories_bf16};
use tandem_memory::{KvType, Packing};

use super::support::{BOUND, check_together};
use super::{BATCH, PLANS, on_every_gpu, on_every_plan, setup};

#[test]
fn the_random_model() {
    on_every_gpu(|what, gpu| {
        for (n, plan) in PLANS.into_iter().enumerate() {
            let mut setup = setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, plan);
            for mut prompt in golden() {
                prompt.name = format!("{what}, plan {n}, {}", prompt.name);
                setup.check_prompt(&prompt, BOUND);
                setup.check_greedy(&prompt);
            }
            assert!(setup.executor.gpu_failure().is_none(), "{what}");
        }
    });
}

#[test]
fn the_trained_model() {
    on_every_plan(|what, gpu, plan| {
        let mut setup = setup(gpu, &stories_bf16(), Packing::AsInFile, KvType::F32, plan);
        let mut prompt = stories().swap_remove(0);
        prompt.name = format!("{what}, {}", prompt.name);
        setup.check_prompt(&prompt, BOUND);
        setup.check_greedy(&prompt);
        assert!(setup.executor.gpu_failure().is_none(), "{what}");
    });
}

#[test]
fn texts_that_are_read_and_written_together() {
    on_every_plan(|what, gpu, plan| {
        let setup = setup(gpu, &golden_model(), Packing::AsInFile, KvType::F32, plan);
        let (mut executor, prompts) = (setup.executor, golden());
        check_together(&mut executor, &prompts, KvType::F32, BATCH / prompts.len(), BOUND);
        assert!(executor.gpu_failure().is_none(), "{what}");
    });
}
