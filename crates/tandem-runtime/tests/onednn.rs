//! Prompts by oneDNN, against the data of `transformers`.
#![cfg(feature = "onednn")]

mod support;

use std::path::Path;
use std::sync::Arc;

use support::{BOUND, Setup, check_together};
use tandem_cpu::onednn::OneDnn;
use tandem_golden::{golden, golden_model, stories, stories_bf16};
use tandem_memory::{KvCache, KvType};
use tandem_model::Checkpoint;
use tandem_runtime::calibrate::{Identity, PrefillRates};
use tandem_runtime::{Executor, LogitsFor, Model, evaluate};
use tandem_testkit::onednn_library;

fn setup(folder: &Path) -> Setup {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    let c = model.config();
    let (heads, width) = (c.n_kv_heads, c.head_dim);
    let kv = KvCache::new(c.n_layers, heads, width, c.context_length, KvType::F32).unwrap();
    Setup { executor: Executor::new(model, 2, 256).unwrap(), kv }
}

fn onednn() -> Arc<OneDnn> {
    Arc::new(OneDnn::open(Some(&onednn_library())).unwrap())
}

#[test]
fn logits_router_choices_and_greedy_tokens() {
    for (model, prompts) in [(golden_model(), golden()), (stories_bf16(), stories())] {
        let mut setup = setup(&model);
        setup.executor.set_onednn(Some(onednn()));
        for prompt in &prompts {
            setup.check_prompt(prompt, BOUND);
            setup.check_greedy(prompt);
        }
        // Short prompts too are work for the library where several go through the model together.
        check_together(&mut setup.executor, &prompts, KvType::F32, 64, BOUND);
    }
}

/// Logits differ in their last bits: so the test above is one of oneDNN.
#[test]
fn a_long_prompt_is_computed_by_the_library() {
    let mut setup = setup(&golden_model());
    let prompts = golden();
    let longest = prompts.iter().max_by_key(|prompt| prompt.ids.len()).unwrap();
    let mut logits = |onednn| {
        let Setup { executor, kv } = &mut setup;
        executor.set_onednn(onednn);
        evaluate(executor, kv, &longest.ids, LogitsFor::All, None).unwrap()
    };
    assert!(logits(None) != logits(Some(onednn())), "{} tokens", longest.ids.len());
}

#[test]
fn both_ways_are_measured_and_the_executor_is_as_before() {
    let mut setup = setup(&golden_model());
    let text = |text: &str| text.to_owned();
    let identity = Identity {
        tandem: text("0"),
        cpu: text("a CPU"),
        isa: text("any"),
        threads: text("2"),
        device: text("oneDNN"),
        driver: onednn().version(),
        kernels: text("dnnl_sgemm"),
        model: text("golden"),
        model_bytes: 1,
        kv_type: text("f32"),
    };
    let Setup { executor, kv } = &mut setup;
    let rates = PrefillRates::measure(executor, kv, &onednn(), identity, (64, 3)).unwrap();
    assert_eq!((rates.tokens, rates.tandem.len(), rates.onednn.len()), (64, 3, 3));
    assert!(rates.tandem.iter().chain(&rates.onednn).all(|rate| *rate > 0.0));
    assert!(executor.onednn().is_none());
    assert!(kv.is_empty());
    let words = rates.describe();
    assert!(words.starts_with("prompts of 64 tokens: Tandem's kernels "), "{words}");
}
