//! An engine that is ready, and its checks against the reference's data.

use tandem_golden::{Prompt, RouterChoices};
use tandem_memory::{KvCache, KvType, PAGE_TOKENS};
use tandem_runtime::{Executor, LogitsFor, RouterTrace, Segment, evaluate};

/// Of the range of the reference's logits.
pub(crate) const BOUND: f32 = 1e-4;

pub(crate) struct Setup {
    pub(crate) executor: Executor,
    pub(crate) kv: KvCache,
}

fn choices(trace: &RouterTrace) -> RouterChoices {
    let all = || trace.routing.iter().flatten();
    RouterChoices {
        experts: all().flat_map(|r| r.experts).map(|e| e as u32).collect(),
        weights: all().flat_map(|r| r.weights).collect(),
    }
}

impl Setup {
    pub(crate) fn check_prompt(&mut self, prompt: &Prompt, bound: f32) {
        let mut trace = RouterTrace::default();
        let logits = evaluate(
            &mut self.executor,
            &mut self.kv,
            &prompt.ids,
            LogitsFor::All,
            Some(&mut trace),
        )
        .unwrap();
        prompt.check_logits(&logits, bound);
        if prompt.router.is_some() {
            prompt.check_router(&choices(&trace), bound);
        }
    }

    pub(crate) fn check_greedy(&mut self, prompt: &Prompt) {
        let mut logits =
            evaluate(&mut self.executor, &mut self.kv, &prompt.ids, LogitsFor::Last, None).unwrap();
        for (n, &expected) in prompt.greedy.iter().enumerate() {
            let best = (0u32..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            assert_eq!(best, expected, "{}: greedy token {n}", prompt.name);
            logits = self
                .executor
                .forward(&[best], &mut self.kv, LogitsFor::Last, None)
                .unwrap()
                .to_vec();
        }
    }
}

/// A text that is read and written in passes with others.
struct Text<'a> {
    prompt: &'a Prompt,
    kv: KvCache,
    /// Of all tokens so far.
    logits: Vec<f32>,
    written: Vec<u32>,
}

impl Text<'_> {
    /// The next tokens of the prompt, or the most likely one; none at the end of the reference's greedy tokens.
    fn next(&mut self, chunk: usize, vocab: usize) -> Vec<u32> {
        let (ids, read) = (&self.prompt.ids, self.kv.len());
        if read < ids.len() {
            return ids[read..(read + chunk).min(ids.len())].to_vec();
        }
        if self.written.len() == self.prompt.greedy.len() {
            return Vec::new();
        }
        let last = &self.logits[self.logits.len() - vocab..];
        let best = (0u32..).zip(last).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        self.written.push(best);
        vec![best]
    }
}

/// Each prompt begins a pass after the one before it, and is read `chunk` tokens at a time, while others read or write.
pub(crate) fn check_together(
    executor: &mut Executor,
    prompts: &[Prompt],
    kv_type: KvType,
    chunk: usize,
    bound: f32,
) {
    let vocab = executor.model().config().vocab_size;
    let len = |prompt: &Prompt| prompt.ids.len() + prompt.greedy.len();
    let padded = |prompt: &Prompt| len(prompt).next_multiple_of(PAGE_TOKENS);
    let pool = executor.kv_pool(prompts.iter().map(padded).sum(), kv_type).unwrap();
    let mut texts: Vec<Text<'_>> = prompts
        .iter()
        .map(|prompt| {
            let kv = KvCache::in_pool(&pool, len(prompt));
            Text { prompt, kv, logits: Vec::new(), written: Vec::new() }
        })
        .collect();
    for pass in 0.. {
        let begun = prompts.len().min(pass + 1);
        let next: Vec<_> = texts[..begun].iter_mut().map(|text| text.next(chunk, vocab)).collect();
        let mut parts: Vec<_> =
            texts.iter_mut().zip(&next).filter(|(_, ids)| !ids.is_empty()).collect();
        let mut segments: Vec<_> = parts
            .iter_mut()
            .map(|(text, ids)| Segment { ids, kv: &mut text.kv, wanted: LogitsFor::All })
            .collect();
        if segments.is_empty() {
            break;
        }
        let mut logits = executor.forward_segments(&mut segments, &[]).unwrap();
        for (text, ids) in parts {
            let own = logits.split_off(..ids.len() * vocab).unwrap();
            text.logits.extend_from_slice(own);
        }
        assert!(logits.is_empty());
    }
    for text in texts {
        let prompt = text.prompt;
        prompt.check_logits(&text.logits[..prompt.ids.len() * vocab], bound);
        assert_eq!(text.written, prompt.greedy, "{}", prompt.name);
    }
}
