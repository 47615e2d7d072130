//! The CPU engine against the data of `transformers`, in every way the engine can be set up.

mod support;

use std::path::Path;
use std::sync::Arc;

use support::{BOUND, Setup, check_together};
use tandem_golden::{
    WINDOW, check_logits, golden, golden_model, stories, stories_bf16, windowed_logits,
};
use tandem_memory::{KvCache, KvType};
use tandem_model::Checkpoint;
use tandem_runtime::{Executor, LogitsFor, Model, evaluate};

/// With an f16 cache keys and values carry 11 bits.
const BOUND_F16_CACHE: f32 = 2e-3;

fn setup(
    folder: &Path,
    threads: usize,
    batch: usize,
    kv_type: KvType,
    window: Option<usize>,
) -> Setup {
    let mut checkpoint = Checkpoint::open(folder).unwrap();
    if window.is_some() {
        checkpoint.config_mut().sliding_window = window;
    }
    let model = Arc::new(Model::load(&checkpoint, threads, &|_| {}).unwrap());
    let c = model.config();
    let kv = KvCache::new(c.n_layers, c.n_kv_heads, c.head_dim, c.context_length, kv_type).unwrap();
    Setup { executor: Executor::new(model, threads, batch).unwrap(), kv }
}

#[test]
fn logits_and_router_choices_with_any_batch_and_team() {
    for (threads, batch) in [(1, 256), (2, 256), (2, 1), (3, 7)] {
        let mut setup = setup(&golden_model(), threads, batch, KvType::F32, None);
        for prompt in golden() {
            setup.check_prompt(&prompt, BOUND);
        }
    }
}

#[test]
fn logits_with_an_f16_cache() {
    let mut setup = setup(&golden_model(), 2, 256, KvType::F16, None);
    for prompt in golden() {
        let logits =
            evaluate(&mut setup.executor, &mut setup.kv, &prompt.ids, LogitsFor::All, None)
                .unwrap();
        prompt.check_logits(&logits, BOUND_F16_CACHE);
    }
}

#[test]
fn greedy_tokens_of_the_random_model() {
    for kv_type in [KvType::F32, KvType::F16] {
        let mut setup = setup(&golden_model(), 2, 256, kv_type, None);
        for prompt in golden() {
            setup.check_greedy(&prompt);
        }
    }
}

#[test]
fn texts_that_are_read_and_written_together() {
    for (threads, chunk) in [(1, 1), (2, 5), (3, 64)] {
        let mut executor = setup(&golden_model(), threads, 256, KvType::F32, None).executor;
        check_together(&mut executor, &golden(), KvType::F32, chunk, BOUND);
    }
    let mut executor = setup(&stories_bf16(), 2, 256, KvType::F32, None).executor;
    check_together(&mut executor, &stories(), KvType::F32, 9, BOUND);
}

#[test]
fn sliding_window() {
    for batch in [256, 5, 1] {
        let mut setup = setup(&golden_model(), 2, batch, KvType::F32, Some(WINDOW));
        let ids = &golden()[2].ids;
        let logits =
            evaluate(&mut setup.executor, &mut setup.kv, ids, LogitsFor::All, None).unwrap();
        let expected = windowed_logits();
        check_logits("window", &expected, &logits[logits.len() - expected.len()..], BOUND);
    }
}

#[test]
fn logits_and_greedy_tokens_of_the_trained_model() {
    let mut setup = setup(&stories_bf16(), 2, 256, KvType::F32, None);
    for prompt in stories() {
        setup.check_prompt(&prompt, BOUND);
        setup.check_greedy(&prompt);
    }
}

/// The answer must not depend on what was in the cache before.
#[test]
fn a_truncated_cache_is_as_good_as_a_new_one() {
    let mut setup = setup(&golden_model(), 2, 256, KvType::F32, None);
    let prompts = golden();
    let long = &prompts[2];
    let vocab = long.logits.len() / long.ids.len();
    evaluate(&mut setup.executor, &mut setup.kv, &long.ids, LogitsFor::Last, None).unwrap();
    setup.kv.truncate(10);
    let logits =
        setup.executor.forward(&long.ids[10..], &mut setup.kv, LogitsFor::All, None).unwrap();
    check_logits("rest", &long.logits[10 * vocab..], logits, BOUND);
}

#[test]
fn ids_beyond_the_vocabulary_and_full_caches_are_errors() {
    let mut setup = setup(&golden_model(), 1, 256, KvType::F32, None);
    let message = setup.executor.forward(&[3, 512], &mut setup.kv, LogitsFor::Last, None);
    assert_eq!(
        message.unwrap_err().to_string(),
        "token id 512: expected less than the vocabulary size 512"
    );
    let too_many = vec![3; 257];
    let message = evaluate(&mut setup.executor, &mut setup.kv, &too_many, LogitsFor::Last, None);
    assert_eq!(
        message.unwrap_err().to_string(),
        "the prompt has 257 tokens, but the context holds only 256: shorten the prompt"
    );
    let fits = vec![3; 256];
    evaluate(&mut setup.executor, &mut setup.kv, &fits, LogitsFor::Last, None).unwrap();
    assert!(setup.executor.forward(&[3], &mut setup.kv, LogitsFor::Last, None).is_err());
}
