//! A GPU with memory of its own that has only some of the experts at a time.

use tandem_golden::{golden, golden_model, stories, stories_bf16};
use tandem_gpu::{CacheStatistics, ExpertCacheSettings, Prefetch, Sharing};
use tandem_memory::{KvType, Packing};
use tandem_model::Checkpoint;
use tandem_model::catalogue::Component;

use super::support::{BOUND, Setup};
use super::{PLANS, PlanOf, all_on_the_gpu, open_with, partition, runtimes, setup};

/// Plans that differ in who knows which experts are used: the GPU, the CPU, both.
const DIFFERENT: [PlanOf; 3] = [all_on_the_gpu, partition, PLANS[4]];

/// Bytes for the experts of a layer of a model, and for so many more.
fn budget(folder: &std::path::Path, more: usize) -> u64 {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = checkpoint.config();
    let experts = checkpoint.summary().components[&Component::Experts].bytes;
    // Matrices begin at multiples of 64.
    let one = experts / (config.n_layers * config.n_experts) as u64 + 3 * 64;
    one * (config.n_experts + more) as u64
}

fn done(setup: &Setup) -> CacheStatistics {
    setup.executor.expert_cache().unwrap().expect("a cache")
}

#[test]
fn logits_and_tokens_are_those_of_the_reference() {
    for device in runtimes::devices() {
        for (n, plan) in DIFFERENT.into_iter().enumerate() {
            for prefetch in [None, Some(Prefetch::Predict), Some(Prefetch::Sequential)] {
                let experts = ExpertCacheSettings {
                    cache_bytes: Some(budget(&golden_model(), 3)),
                    prefetch,
                    ..ExpertCacheSettings::default()
                };
                let gpu = open_with(device, Some(Sharing::None), experts);
                let (packing, kv) = (Packing::AsInFile, KvType::F32);
                let mut setup = setup(gpu, &golden_model(), packing, kv, plan);
                let what = format!("{}, plan {n}, {prefetch:?}", device.info().full_name());
                let words = setup.executor.expert_memory().unwrap();
                assert!(words.starts_with("expert cache: "), "{what}: {words}");
                for mut prompt in golden() {
                    prompt.name = format!("{what}, {}", prompt.name);
                    setup.check_prompt(&prompt, BOUND);
                    setup.check_greedy(&prompt);
                }
                assert!(setup.executor.gpu_failure().is_none(), "{what}");
                let done = done(&setup);
                assert!(done.hits > 0 && done.misses > 0 && done.evictions > 0, "{what}: {done:?}");
                assert_eq!(done.prefetched > 0, prefetch.is_some() && n < 2, "{what}: {done:?}");
                assert!(done.bytes > 0 && done.upload_seconds > 0.0, "{what}: {done:?}");
                assert!((0.0..=1.0).contains(&done.overlap()), "{what}: {done:?}");
            }
        }
    }
}

#[test]
fn the_trained_model_tells_the_same_story() {
    for device in runtimes::devices() {
        let experts = ExpertCacheSettings {
            cache_bytes: Some(budget(&stories_bf16(), 1)),
            ..ExpertCacheSettings::default()
        };
        let gpu = open_with(device, Some(Sharing::None), experts);
        let (packing, kv) = (Packing::AsInFile, KvType::F32);
        let mut setup = setup(gpu, &stories_bf16(), packing, kv, all_on_the_gpu);
        let prompt = stories().swap_remove(0);
        setup.check_prompt(&prompt, BOUND);
        setup.check_greedy(&prompt);
        assert!(setup.executor.gpu_failure().is_none());
        assert!(done(&setup).evictions > 0);
    }
}

#[test]
fn what_shares_memory_needs_no_cache_and_says_so() {
    for device in runtimes::devices() {
        let experts =
            ExpertCacheSettings { cache_bytes: Some(1), ..ExpertCacheSettings::default() };
        let gpu = open_with(device, None, experts);
        let (packing, kv) = (Packing::AsInFile, KvType::F32);
        let setup = setup(gpu, &golden_model(), packing, kv, all_on_the_gpu);
        let words = setup.executor.expert_memory().unwrap();
        assert_eq!(words, "no expert cache: the device reads experts where they are");
        assert_eq!(setup.executor.expert_cache().unwrap(), None);
    }
}
