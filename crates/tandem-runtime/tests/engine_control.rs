//! What can be asked of an engine, and changed, while it runs.

#[path = "support/watched.rs"]
#[allow(dead_code)] // what passes are to tell is for other tests
mod watched;

use std::sync::Arc;
use std::time::Duration;

use tandem_golden::{Prompt, stories, stories_bf16};
use tandem_memory::KvType;
use tandem_model::Checkpoint;
use tandem_runtime::partition::{Partition, Wanted};
use tandem_runtime::plan::PassSize;
use tandem_runtime::policy::PolicyKind;
use tandem_runtime::telemetry::Activity;
use tandem_runtime::{
    Device, Engine, EngineOptions, EngineSetup, Event, Executor, FinishReason, Instrumentation,
    Model, Request, RuntimeError, SamplingParams,
};

const OPTIONS: EngineOptions = EngineOptions {
    max_sequences: 3,
    max_waiting: 8,
    prefill_chunk: 16,
    context: 256,
    kv_tokens: None,
    kv_type: KvType::F32,
};

fn start() -> Arc<Engine> {
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    let tokenizer = Arc::new(checkpoint.text().unwrap().tokenizer);
    let executor = Executor::new(model, 2, 64).unwrap();
    let instrumentation = Some(Instrumentation::start(watched::params(&checkpoint)).unwrap());
    let setup = EngineSetup { instrumentation, ..EngineSetup::default() };
    Arc::new(Engine::start_with(executor, tokenizer, OPTIONS, setup).unwrap())
}

fn request(max_tokens: usize) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        continues_prompt: true,
        ..Request::new(SamplingParams::GREEDY, vec![])
    }
}

/// The longest answers of the reference.
fn long() -> Prompt {
    stories().into_iter().max_by_key(|story| story.greedy.len()).unwrap()
}

fn is_shared<T: Send + Sync>(_: &T) {}

#[test]
fn a_watched_engine_writes_the_reference_s_tokens_and_tells_of_them() {
    let engine = start();
    is_shared(&engine);
    let stories: Vec<_> = stories().into_iter().take(3).collect();
    let handles: Vec<_> = stories
        .iter()
        .map(|s| engine.submit(s.ids.clone(), request(s.greedy.len())).unwrap())
        .collect();
    let (mut read, mut written) = (0, 0);
    for (handle, story) in handles.into_iter().zip(&stories) {
        let generated = handle.wait().unwrap();
        assert_eq!(generated.ids, story.greedy);
        read += generated.computed_tokens as u64;
        written += generated.ids.len() as u64;
    }
    let throughput = engine.throughput();
    assert_eq!((throughput.prompt_tokens, throughput.generated_tokens), (read, written));
    assert!(throughput.tokens_per_second > 0.0 && throughput.rounds > 0);

    let summary = engine.telemetry().unwrap();
    assert_eq!(
        (summary.lost_events, summary.totals.igpu_packets, summary.totals.failed_packets),
        (0, 0, 0)
    );
    let client = serde_json::to_value(engine.client_telemetry().unwrap()).unwrap();
    assert_eq!(client["cpu_packets"], client["total_packets_processed"]);
    for key in
        ["total_cpu_time_ms", "avg_cpu_time_ms", "peak_memory_usage_mb", "cpu_bandwidth_gbps"]
    {
        assert!(client[key].as_f64().unwrap() > 0.0, "{key}: {client}");
    }
    assert_eq!(client["cpu_igpu_contention"], 0.0);
    assert_eq!(client["current_queue_depth"], 0);
    assert!(engine.bandwidth_stats().unwrap().utilization.is_some());
    assert_eq!(engine.token_metrics().unwrap().holders.len(), 0);
    // Every token that went through the model chose two experts in every layer: the last of a text does not.
    let tokens = read + written - stories.len() as u64;
    let chosen = engine.expert_distribution().unwrap();
    assert!(chosen.iter().all(|layer| layer.iter().sum::<u64>() == 2 * tokens));

    let newest = engine.newest_token().unwrap();
    let computed = newest.events.iter().filter(|event| event.activity == Activity::Compute);
    assert_eq!(computed.count(), engine.plan(PassSize { tokens: 1, context: 1 }).len());
    let trace: serde_json::Value = serde_json::from_slice(&engine.trace().unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().len() > newest.events.len());
}

#[test]
fn tasks_run_between_rounds_and_a_panic_ends_none_but_its_own() {
    let engine = start();
    let story = long();
    let text = engine.submit(story.ids.clone(), request(story.greedy.len())).unwrap();
    let layers = engine.run_on_executor(|executor| executor.model().config().n_layers).unwrap();
    assert!(layers > 0);
    // One that computes, with a cache of its own.
    let ids = story.ids.clone();
    let logits = engine
        .run_on_executor(move |executor| {
            let mut kv = executor.kv_cache(ids.len(), KvType::F32)?;
            let (first, _) = ids.split_at(ids.len().min(executor.batch()));
            executor
                .forward(first, &mut kv, tandem_runtime::LogitsFor::Last, None)
                .map(<[f32]>::len)
        })
        .unwrap()
        .unwrap();
    assert_eq!(logits, engine.run_on_executor(|e| e.model().config().vocab_size).unwrap());
    let error = engine.run_on_executor(|_| panic!("as a test wants it")).unwrap_err();
    assert_eq!(error.to_string(), "a task of the engine panicked: as a test wants it");
    assert_eq!(text.wait().unwrap().ids, story.greedy);
}

#[test]
fn policies_and_partitions_change_between_rounds() {
    let engine = start();
    let story = long();
    let text = engine.submit(story.ids.clone(), request(story.greedy.len())).unwrap();
    assert_eq!(engine.policy(), PolicyKind::default());
    engine.set_policy(PolicyKind::Static).unwrap();
    assert_eq!(engine.policy(), PolicyKind::Static);
    let pass = PassSize { tokens: 1, context: 1 };
    assert!(engine.plan(pass).iter().all(|step| step.device == "cpu"));
    engine.reload(Partition::everything(Wanted::Igpu)).unwrap();
    assert!(engine.run_on_executor(|e| e.planner().uses_igpu()).unwrap());
    // The plan says so; there is none, and the CPU goes on.
    for step in engine.plan(pass) {
        assert_eq!((step.device.as_str(), step.reason.as_str()), ("cpu", "there is no GPU"));
    }
    let devices = engine.devices();
    assert_eq!((devices.len(), devices[0].device), (1, Device::Cpu));
    assert_eq!(text.wait().unwrap().ids, story.greedy);
}

#[test]
fn a_text_that_is_cancelled_leaves_no_permit() {
    let engine = start();
    let story = long();
    let text = engine.submit(story.ids.clone(), request(200)).unwrap();
    assert!(matches!(text.next_event(), Some(Event::Tokens { .. })));
    text.cancel();
    assert_eq!(text.wait().unwrap().finish, FinishReason::Cancelled);
    assert_eq!(engine.token_metrics().unwrap().holders.len(), 0);
    let next = engine.submit(story.ids.clone(), request(3)).unwrap();
    assert_eq!(next.wait().unwrap().ids, story.greedy[..3]);
}

#[test]
fn an_engine_stops_at_once_or_when_its_texts_have_ended() {
    let engine = start();
    let story = long();
    let text = engine.submit(story.ids.clone(), request(story.greedy.len())).unwrap();
    assert!(matches!(text.next_event(), Some(Event::Tokens { .. })));
    let waiting: Vec<_> =
        (0..4).map(|_| engine.submit(story.ids.clone(), request(200)).unwrap()).collect();
    // Whoever still waits for a place when the doors close is told.
    engine.run_on_executor(|_| ()).unwrap();
    let summary = engine.shutdown(true).unwrap().unwrap();
    assert!(summary.totals.total_packets_processed > 0);
    assert_eq!(text.wait().unwrap().ids, story.greedy);
    let ends: Vec<_> = waiting.into_iter().map(|handle| handle.wait()).collect();
    assert!(ends[..2].iter().all(|end| end.as_ref().unwrap().ids.len() == 200));
    assert!(
        ends[2..].iter().all(|end| {
            matches!(end.as_ref().unwrap_err().as_ref(), RuntimeError::EngineStopped)
        })
    );
    let late = engine.submit(story.ids.clone(), request(1)).unwrap_err();
    assert_eq!(late.to_string(), "the engine has stopped");
    assert!(engine.run_on_executor(|_| ()).is_err());
    assert!(engine.telemetry().is_none() && engine.shutdown(false).unwrap().is_none());

    let engine = start();
    let text = engine.submit(story.ids.clone(), request(200)).unwrap();
    assert!(text.next_event_within(Duration::from_secs(60)).unwrap().is_some());
    engine.shutdown(false).unwrap();
    assert!(matches!(text.wait().unwrap_err().as_ref(), RuntimeError::EngineStopped));
}
