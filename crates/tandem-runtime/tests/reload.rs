//! A config and a policy that change while texts are written: the text stays the same, and what is not valid changes nothing.

use std::path::Path;
use std::sync::Arc;

use tandem_golden::{stories, stories_bf16};
use tandem_memory::KvType;
use tandem_model::{Checkpoint, PhimoeConfig};
use tandem_runtime::partition::{Partition, PartitionError};
use tandem_runtime::plan::PassSize;
use tandem_runtime::policy::PolicyKind;
use tandem_runtime::{
    Engine, EngineOptions, EngineSetup, Executor, Instrumentation, InstrumentationParams, Model,
    Request, SamplingParams,
};

const OPTIONS: EngineOptions = EngineOptions {
    max_sequences: 3,
    max_waiting: 8,
    prefill_chunk: 16,
    context: 256,
    kv_tokens: None,
    kv_type: KvType::F32,
};

fn parse(config: &PhimoeConfig, text: &str) -> Result<Partition, PartitionError> {
    Partition::parse(Path::new("p.yaml"), text, config, &[])
}

fn request(max_tokens: usize) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        sampling: SamplingParams::GREEDY,
        stop_ids: vec![],
        stop_strings: vec![],
        lookup: 0,
        continues_prompt: true,
        logprobs: None,
        constraint: None,
    }
}

#[test]
fn a_config_that_changes_and_one_that_is_broken() {
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let config = checkpoint.config().clone();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    let tokenizer = Arc::new(checkpoint.text().unwrap().tokenizer);
    let instrumentation = Instrumentation::start(InstrumentationParams::default()).unwrap();
    let first = parse(&config, "static_partition: {lm_head: igpu}").unwrap();
    let setup = EngineSetup {
        instrumentation: Some(instrumentation),
        policy: first.scheduling().policy,
        partition: Some(first),
        ..EngineSetup::default()
    };
    let executor = Executor::new(model, 2, 64).unwrap();
    let engine = Engine::start_with(executor, tokenizer, OPTIONS, setup).unwrap();
    let one = PassSize { tokens: 1, context: 1 };
    let place = |engine: &Engine| {
        let steps = engine.plan(one);
        format!("{:?}", steps.last().unwrap())
    };
    let story = &stories()[0];
    let handles: Vec<_> = (0..3)
        .map(|_| engine.submit(story.ids.clone(), request(story.greedy.len())).unwrap())
        .collect();
    let before = place(&engine);
    assert_eq!(engine.policy(), PolicyKind::BandwidthAware);
    // Broken ones do not even become partitions; what is in force stays.
    for broken in ["static_partition: {lm_hed: cpu}", "a: [", "global: {num_layers: 99}"] {
        assert!(parse(&config, broken).is_err());
        assert_eq!((place(&engine), engine.policy()), (before.clone(), PolicyKind::BandwidthAware));
    }
    for (text, policy) in [
        ("global: {scheduling_policy: adaptive}", PolicyKind::Adaptive),
        ("global: {scheduling_policy: static, enable_pipelining: false}", PolicyKind::Static),
        ("bandwidth_control: {enable_token_semaphore: false}", PolicyKind::BandwidthAware),
    ] {
        engine.reload(parse(&config, text).unwrap()).unwrap();
        assert_eq!(engine.policy(), policy, "{text}");
    }
    assert_ne!(place(&engine), before);
    for policy in PolicyKind::ALL {
        engine.set_policy(policy).unwrap();
        assert_eq!(engine.policy(), policy);
        assert_eq!(engine.run_on_executor(|executor| executor.policy()).unwrap(), policy);
    }
    for handle in handles {
        assert_eq!(handle.wait().unwrap().ids, story.greedy);
    }
}

/// Whether heavy operations hold the token follows the config, too.
#[test]
fn the_token_is_taken_up_and_given_up() {
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let config = checkpoint.config().clone();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    let tokenizer = Arc::new(checkpoint.text().unwrap().tokenizer);
    let instrumentation = Instrumentation::start(InstrumentationParams::default()).unwrap();
    let setup = EngineSetup {
        instrumentation: Some(instrumentation),
        partition: Some(parse(&config, "").unwrap()),
        ..EngineSetup::default()
    };
    let executor = Executor::new(model, 2, 64).unwrap();
    let engine = Engine::start_with(executor, tokenizer, OPTIONS, setup).unwrap();
    let granted = |text: &str| {
        engine.reload(parse(&config, text).unwrap()).unwrap();
        let granted = || {
            let token = engine.token_metrics().unwrap();
            token.granted_decode + token.granted_prefill
        };
        let before = granted();
        engine.submit(stories()[0].ids.clone(), request(4)).unwrap().wait().unwrap();
        granted() - before
    };
    let all = granted("");
    assert!(all > 0);
    assert_eq!(granted("bandwidth_control: {enable_token_semaphore: false}"), 0);
    assert_eq!(granted("bandwidth_control: {heavy_operations: []}"), 0);
    // lm_head alone: once for each of four tokens.
    assert_eq!(granted("bandwidth_control: {heavy_operations: [lm_head]}"), 4);
    assert!(granted("") > 4);
}
