//! Rounds, one by one.

use super::*;
use crate::engine::handle::{Handle, channel};
use crate::{Model, Request, SamplingParams};
use tandem_golden::{Prompt, stories, stories_bf16};
use tandem_memory::KvType;
use tandem_model::{Checkpoint, Text};

const OPTIONS: EngineOptions = EngineOptions {
    max_sequences: 4,
    max_waiting: 4,
    prefill_chunk: 8,
    context: 200,
    kv_tokens: None,
    kv_type: KvType::F16,
};

fn executor_and_text() -> (Executor, Text) {
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    (Executor::new(model, 2, 32).unwrap(), checkpoint.text().unwrap())
}

fn begin(rounds: &mut Rounds<'_>, prompt: Vec<u32>, max_tokens: usize) -> Handle {
    let mut request = Request::new(SamplingParams::GREEDY, vec![]);
    request.max_tokens = Some(max_tokens);
    let (handle, job) = channel(prompt, request);
    rounds.begin(job);
    handle
}

/// Tokens read and tokens written of each text, by the length of its prompt.
fn progress(rounds: &Rounds<'_>) -> Vec<(usize, usize, usize)> {
    let mut all: Vec<_> = rounds
        .running
        .iter()
        .map(|Running { text, context, .. }| {
            let prompt = text.prompt_tokens();
            (prompt, context.ids.len().min(prompt), text.ids().len())
        })
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn prompts_take_turns_and_no_one_who_writes_waits_for_more_than_a_chunk() {
    let (executor, text) = executor_and_text();
    let (queue, status) = (Queue::default(), Status::default());
    let pool = executor.kv_pool(800, KvType::F16).unwrap();
    let mut rounds = Rounds::new(executor, &text.tokenizer, (&queue, &status), OPTIONS, &pool);
    // They have nothing in common.
    let prompt = |len: u32| (5 * len..6 * len).collect::<Vec<u32>>();
    let writer = begin(&mut rounds, prompt(40), 100);
    // Nobody is written, so the whole batch of 32 is the reader's.
    rounds.round();
    assert_eq!(progress(&rounds), [(40, 32, 0)]);
    rounds.round();
    assert_eq!(progress(&rounds), [(40, 40, 1)]);
    let _readers = [begin(&mut rounds, prompt(20), 100), begin(&mut rounds, prompt(19), 100)];
    let expected = [
        [(19, 0, 0), (20, 8, 0), (40, 40, 2)],
        [(19, 8, 0), (20, 8, 0), (40, 40, 3)],
        [(19, 8, 0), (20, 16, 0), (40, 40, 4)],
        [(19, 16, 0), (20, 16, 0), (40, 40, 5)],
        // What the one does not need of the chunk is the other's.
        [(19, 19, 1), (20, 20, 1), (40, 40, 6)],
        [(19, 19, 2), (20, 20, 2), (40, 40, 7)],
    ];
    for expected in expected {
        rounds.round();
        assert_eq!(progress(&rounds), expected);
    }
    drop(writer);
    rounds.round();
    assert_eq!(progress(&rounds), [(19, 19, 3), (20, 20, 3)]);
    // Of 13 pages the ones of these, and what the first has left.
    assert_eq!((pool.pages(), pool.free_pages()), (13, 10));
}

/// Goes on until all texts have ended.
fn finish(rounds: &mut Rounds<'_>) {
    while !rounds.running.is_empty() || !rounds.paused.is_empty() {
        rounds.round();
    }
}

#[test]
fn pages_are_kept_for_prompts_that_begin_alike() {
    let (executor, text) = executor_and_text();
    let (queue, status) = (Queue::default(), Status::default());
    let pool = executor.kv_pool(4 * 64, KvType::F16).unwrap();
    let mut rounds = Rounds::new(executor, &text.tokenizer, (&queue, &status), OPTIONS, &pool);
    let mut cached = |prompt: Vec<u32>| {
        let handle = begin(&mut rounds, prompt, 1);
        finish(&mut rounds);
        (handle.wait().unwrap().cached_tokens, pool.free_pages())
    };
    let prompt = |start: u32| (start..start + 30).collect::<Vec<u32>>();
    assert_eq!(cached(prompt(5)), (0, 3));
    assert_eq!(cached(prompt(100)), (0, 2));
    assert_eq!(cached(prompt(5)), (29, 2));
    assert_eq!(cached([prompt(5), prompt(60)].concat()), (30, 2));
    assert_eq!(cached(prompt(200)), (0, 1));
    assert_eq!(cached(prompt(300)), (0, 0));
    // What was not used for longest is given up.
    assert_eq!(cached(prompt(400)), (0, 0));
    assert_eq!(cached(prompt(5)), (29, 1));
    assert_eq!(cached(prompt(100)), (0, 0));
    // What a text begins with is its own while it is read: others go for the pages that it needs.
    assert_eq!(cached((5..135).collect()), (30, 0));
    assert_eq!(cached((5..135).collect()), (129, 1));
}

/// A prompt that several texts begin with is read once, whether they begin together or one after the other.
#[test]
fn what_texts_have_in_common_is_read_once() {
    let (executor, text) = executor_and_text();
    let (queue, status) = (Queue::default(), Status::default());
    let pool = executor.kv_pool(4 * 256, KvType::F16).unwrap();
    let mut rounds = Rounds::new(executor, &text.tokenizer, (&queue, &status), OPTIONS, &pool);
    let prompt = |tail: u32| [(5..145).collect(), vec![tail; 7]].concat();
    let together = [200, 201, 202].map(|tail| begin(&mut rounds, prompt(tail), 20));
    // While one reads, the others wait.
    rounds.round();
    assert_eq!(progress(&rounds), [(147, 0, 0), (147, 0, 0), (147, 32, 0)]);
    while rounds.running.iter().any(|running| running.text.is_read(&running.context)) {
        rounds.round();
    }
    // Two full pages for all, and one each.
    assert_eq!(pool.pages() - pool.free_pages(), 2 + 3);
    let later = begin(&mut rounds, prompt(203), 20);
    finish(&mut rounds);
    let generated = together.into_iter().chain([later]).map(|handle| handle.wait().unwrap());
    let read: Vec<_> = generated.map(|g| (g.cached_tokens, g.computed_tokens)).collect();
    assert_eq!(read, [(0, 147), (140, 7), (140, 7), (140, 7)]);
}

/// More texts than there are pages for: those that began last are interrupted, and all say what the reference says.
#[test]
fn where_pages_run_out_the_last_texts_are_interrupted_and_lose_nothing() {
    let (executor, text) = executor_and_text();
    let (queue, status) = (Queue::default(), Status::default());
    let pool = executor.kv_pool(4 * 64, KvType::F32).unwrap();
    let mut rounds = Rounds::new(executor, &text.tokenizer, (&queue, &status), OPTIONS, &pool);
    let stories = stories();
    let pages: usize =
        stories.iter().map(|s| (s.ids.len() + s.greedy.len() - 1).div_ceil(64)).sum();
    assert!(pages > pool.pages() + 1, "{pages} pages of texts, which leaves nothing to test");
    let mut start = |story: &Prompt| begin(&mut rounds, story.ids.clone(), story.greedy.len());
    let handles: Vec<Handle> = stories.iter().map(&mut start).collect();
    let mut interrupted = 0;
    while !rounds.running.is_empty() || !rounds.paused.is_empty() {
        rounds.round();
        interrupted = interrupted.max(rounds.paused.len());
    }
    assert_eq!(interrupted, 2);
    for (handle, story) in handles.into_iter().zip(&stories) {
        let generated = handle.wait().unwrap();
        assert_eq!(generated.ids, story.greedy);
        assert_eq!(generated.cached_tokens + generated.computed_tokens, story.ids.len());
    }
    // One that has the whole pool for itself fills it, and no more.
    let alone = begin(&mut rounds, (400..440).collect(), 1000);
    finish(&mut rounds);
    let alone = alone.wait().unwrap();
    assert_eq!(alone.finish, crate::FinishReason::ContextFull);
    assert_eq!(alone.ids.len(), 200 - 40 + 1);
    drop(rounds);
    assert_eq!(pool.free_pages(), pool.pages());
}

/// Interrupted texts end when they are cancelled, without having gone on.
#[test]
fn interrupted_texts_can_be_cancelled() {
    let (executor, text) = executor_and_text();
    let (queue, status) = (Queue::default(), Status::default());
    let pool = executor.kv_pool(3 * 64, KvType::F16).unwrap();
    let mut rounds = Rounds::new(executor, &text.tokenizer, (&queue, &status), OPTIONS, &pool);
    let _first = begin(&mut rounds, (5..45).collect(), 140);
    let second = begin(&mut rounds, (100..140).collect(), 140);
    while rounds.paused.is_empty() {
        rounds.round();
    }
    second.cancel();
    rounds.round();
    let generated = second.wait().unwrap();
    assert_eq!(generated.finish, crate::FinishReason::Cancelled);
    assert!(!generated.ids.is_empty() && rounds.paused.is_empty());
}
