//! Several texts at a time say what each says alone, whoever comes and goes meanwhile.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tandem_golden::{stories, stories_bf16};
use tandem_memory::KvType;
use tandem_model::tokenizer::Tokenizer;
use tandem_model::{Checkpoint, Text};
use tandem_runtime::{
    Engine, EngineOptions, Event, Executor, FinishReason, Generated, Handle, Model, Request,
    SamplingParams, Session,
};
use tandem_testkit::Rng;

const OPTIONS: EngineOptions = EngineOptions {
    max_sequences: 3,
    max_waiting: 64,
    prefill_chunk: 16,
    context: 256,
    kv_tokens: None,
    kv_type: KvType::F32,
};

fn load() -> (Arc<Model>, Text) {
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    (Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap()), checkpoint.text().unwrap())
}

fn start(model: &Arc<Model>, tokenizer: &Arc<Tokenizer>, options: EngineOptions) -> Engine {
    let executor = Executor::new(Arc::clone(model), 2, 64).unwrap();
    Engine::start(executor, Arc::clone(tokenizer), options).unwrap()
}

fn request(max_tokens: usize, sampling: SamplingParams) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        lookup: 8,
        continues_prompt: true,
        ..Request::new(sampling, vec![])
    }
}

/// Waits for the end; what was told on the way must be the whole.
fn listen(handle: &Handle) -> Generated {
    let (mut all_ids, mut all_text) = (Vec::new(), String::new());
    loop {
        match handle.next_event().expect("the engine goes on") {
            Event::Tokens { ids, text, .. } => {
                all_ids.extend(ids);
                all_text += &text;
            }
            Event::Finished(generated) => {
                assert_eq!((&generated.ids, &generated.text), (&all_ids, &all_text));
                assert!(handle.next_event().is_none());
                return generated;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// The reference's greedy tokens, under random arrivals and departures.
#[test]
fn every_text_is_the_reference_s_whoever_comes_and_goes() {
    let (model, text) = load();
    let tokenizer = Arc::new(text.tokenizer);
    let stories = stories();
    for (seed, max_sequences, prefill_chunk) in [(1, 1, 16), (2, 3, 1), (3, 5, 7), (4, 12, 64)] {
        let engine =
            start(&model, &tokenizer, EngineOptions { max_sequences, prefill_chunk, ..OPTIONS });
        let mut rng = Rng::new(seed);
        let mut handles = Vec::new();
        for _ in 0..14 {
            let story = &stories[rng.below(stories.len())];
            let most = 1 + rng.below(story.greedy.len());
            let handle =
                engine.submit(story.ids.clone(), request(most, SamplingParams::GREEDY)).unwrap();
            match rng.below(4) {
                // Leaves at some time: while it waits, is read or written.
                0 => {
                    let _ = handle.next_event_within(Duration::from_millis(rng.below(20) as u64));
                }
                _ => handles.push((handle, &story.greedy[..most])),
            }
            std::thread::sleep(Duration::from_millis(rng.below(10) as u64));
        }
        for (handle, expected) in handles {
            let generated = listen(&handle);
            assert_eq!(generated.ids, expected, "seed {seed}");
            assert_eq!(generated.finish, FinishReason::Length);
            assert_eq!(generated.drafted_tokens, 0);
            let read = generated.cached_tokens + generated.computed_tokens;
            assert_eq!(read, generated.prompt_tokens);
        }
    }
}

/// Texts come, go and are cancelled at random, with far fewer pages than they would take: all that end say what the
/// reference says, and in the end every page is free again.
#[test]
fn pages_are_not_lost_whatever_happens() {
    let (model, text) = load();
    let tokenizer = Arc::new(text.tokenizer);
    let stories = stories();
    let longest = stories.iter().map(|story| story.ids.len() + story.greedy.len()).max().unwrap();
    // The longest text and not two of them, and then as many as some have in common.
    for (seed, kv_tokens) in [(7, longest), (8, 2 * longest), (9, 4 * longest)] {
        let options = EngineOptions {
            max_sequences: 8,
            prefill_chunk: 16,
            kv_tokens: Some(kv_tokens),
            ..OPTIONS
        };
        let engine = start(&model, &tokenizer, options);
        let pool = engine.kv_pool().clone();
        let mut rng = Rng::new(seed);
        let (mut handles, mut computed, mut prompts) = (Vec::new(), 0, 0);
        for _ in 0..60 {
            let story = &stories[rng.below(stories.len())];
            let most = 1 + rng.below(story.greedy.len());
            let request = request(most, SamplingParams::GREEDY);
            let handle = loop {
                match engine.submit(story.ids.clone(), request.clone()) {
                    Ok(handle) => break handle,
                    Err(error) => assert!(error.to_string().contains("queue is full"), "{error}"),
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            match rng.below(3) {
                0 => {
                    let time = Duration::from_millis(rng.below(30) as u64);
                    let _ = handle.next_event_within(time);
                }
                _ => handles.push((handle, &story.greedy[..most])),
            }
        }
        for (handle, expected) in handles {
            let generated = listen(&handle);
            assert_eq!(generated.ids, expected, "seed {seed}");
            let read = generated.cached_tokens + generated.computed_tokens;
            assert_eq!(read, generated.prompt_tokens);
            computed += generated.computed_tokens;
            prompts += generated.prompt_tokens;
        }
        assert!(computed < prompts, "{computed} of {prompts} tokens of prompts were read");
        assert!(pool.free_pages() < pool.pages(), "nothing was kept");
        drop(engine);
        assert_eq!(pool.free_pages(), pool.pages(), "seed {seed}");
    }
}

/// Each text has random numbers, a repetition penalty and stop strings of its own.
#[test]
fn every_way_of_choosing_goes_on_as_it_would_alone() {
    let (model, text) = load();
    let tokenizer = Arc::new(text.tokenizer);
    let warm = SamplingParams { temperature: 0.7, top_k: 40, seed: 5, ..SamplingParams::GREEDY };
    let penalty = SamplingParams { repetition_penalty: 1.1, ..SamplingParams::GREEDY };
    let free = SamplingParams { top_k: 0, seed: 6, ..warm.clone() };
    let samplings = [SamplingParams::GREEDY, warm, penalty, free];
    let requests: Vec<_> = samplings
        .into_iter()
        .map(|sampling| Request { stop_strings: vec!["was".into()], ..request(40, sampling) })
        .collect();
    let prompt = stories()[0].ids.clone();
    let engine = start(&model, &tokenizer, EngineOptions { max_sequences: 4, ..OPTIONS });
    let together: Vec<Handle> = requests
        .iter()
        .map(|request| engine.submit(prompt.clone(), request.clone()).unwrap())
        .collect();
    let mut executor = Executor::new(model, 2, 64).unwrap();
    for (request, handle) in requests.iter().zip(together) {
        let mut session = Session::new(&executor, OPTIONS.context, OPTIONS.kv_type).unwrap();
        let alone = session
            .generate(&mut executor, &tokenizer, &prompt, request, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap();
        let together = listen(&handle);
        assert_eq!(together.text, alone.text, "{:?}", request.sampling);
        assert_eq!((together.ids, together.finish), (alone.ids, alone.finish));
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let (model, text) = load();
    let tokenizer = Arc::new(text.tokenizer);
    let start_error = |options| {
        let executor = Executor::new(Arc::clone(&model), 1, 8).unwrap();
        Engine::start(executor, Arc::clone(&tokenizer), options).err().unwrap().to_string()
    };
    assert_eq!(
        start_error(EngineOptions { max_sequences: 8, ..OPTIONS }),
        "max_sequences: expected 1 or more, and fewer than a batch, found 8"
    );
    assert_eq!(
        start_error(EngineOptions { prefill_chunk: 0, ..OPTIONS }),
        "prefill_chunk: expected 1 or more, found 0"
    );
    assert_eq!(
        start_error(EngineOptions { kv_tokens: Some(0), ..OPTIONS }),
        "kv_tokens: expected 1 or more, found 0"
    );
    // A text cannot have more pages than there are.
    let narrow = start(&model, &tokenizer, EngineOptions { kv_tokens: Some(64), ..OPTIONS });
    let request_of_65 = narrow.submit(vec![1; 65], request(1, SamplingParams::GREEDY));
    assert_eq!(
        request_of_65.map(|_| ()).unwrap_err().to_string(),
        "the prompt has 65 tokens, but the context holds only 64: shorten the prompt"
    );
    let engine = start(&model, &tokenizer, EngineOptions { max_waiting: 0, ..OPTIONS });
    let refused = |prompt, sampling| {
        engine.submit(prompt, request(1, sampling)).map(|_| ()).unwrap_err().to_string()
    };
    let greedy = SamplingParams::GREEDY;
    assert!(refused(vec![], greedy.clone()).starts_with("the prompt is empty"));
    assert_eq!(
        refused(vec![1; 257], greedy.clone()),
        "the prompt has 257 tokens, but the context holds only 256: shorten the prompt"
    );
    let cold = SamplingParams { temperature: -1.0, ..greedy.clone() };
    assert_eq!(refused(vec![1], cold), "temperature: expected 0 or more, found -1");
    assert_eq!(
        refused(vec![1], greedy.clone()),
        "the queue is full: 0 texts wait behind 0 that are written: try again later"
    );
    assert!(refused(vec![1 << 20], greedy).starts_with("token id 1048576: expected less than"));
}

#[test]
fn texts_end_when_they_are_cancelled_when_the_context_is_full_or_with_the_engine() {
    let (model, text) = load();
    let tokenizer = Arc::new(text.tokenizer);
    let engine = start(&model, &tokenizer, OPTIONS);
    let prompt = stories()[0].ids.clone();
    let endless = Request { max_tokens: None, ..request(1, SamplingParams::GREEDY) };
    let cancelled = engine.submit(prompt.clone(), endless.clone()).unwrap();
    cancelled.cancel();
    assert_eq!(listen(&cancelled).finish, FinishReason::Cancelled);
    let full = engine.submit(prompt.clone(), endless.clone()).unwrap();
    let generated = listen(&full);
    assert_eq!(generated.finish, FinishReason::ContextFull);
    // A token for each free place, and one after the last.
    assert_eq!(generated.ids.len(), OPTIONS.context - prompt.len() + 1);
    let stopped = engine.submit(prompt, endless).unwrap();
    drop(engine);
    assert_eq!(stopped.wait().unwrap_err().to_string(), "the engine has stopped");
}
