//! Causal attention over the KV cache, with grouped queries and an optional sliding window.
//!
//! Work is cut by KV head and by blocks of tokens: the queries of a block share one pass over the keys they see,
//! which is taken in blocks small enough for the first-level cache. Softmax is computed on the way, with a
//! running maximum (the "online softmax" of FlashAttention, arXiv 2205.14135), so no row of scores is ever held
//! in whole.
//!
//! A short input over a long context, a decoded token above all, would leave most threads without work. There the
//! keys are cut into spans as well, and the spans' results are put together at the end.

use std::ops::Range;

use tandem_memory::{KvData, KvLayer};

use crate::cpu::Cpu;
use crate::disjoint::Disjoint;
use crate::isa::{Kernels, Rows};
use crate::scratch::with_scratch;

/// Tokens whose queries share a pass over the keys.
const TOKEN_BLOCK: usize = 8;
/// Keys scored at a time: 32 KiB of f32 with heads of 128.
const KEY_BLOCK: usize = 64;
/// Keys of a span, for inputs of one block of tokens. Fixed, so that results do not depend on the thread count.
const SPAN: usize = 512;

/// `out = softmax(q k / sqrt(head_dim)) v` for every query head of every token.
///
/// `q` and `out` are `[token][head][head_dim]`; `kv` holds the sequence up to and including these tokens. Query
/// head `h` reads KV head `h / (n_heads / kv_heads)`. The first token is at `start_pos`; the query at position `i`
/// sees the key at `j` where `j <= i` and, with a window, `j > i - window`.
///
/// # Panics
/// When the shapes do not fit together, or the window is 0.
pub fn attention(
    cpu: &Cpu,
    q: &[f32],
    kv: KvLayer<'_>,
    start_pos: usize,
    n_heads: usize,
    window: Option<usize>,
    out: &mut [f32],
) {
    let task = Task::new(q, kv, start_pos, n_heads, window);
    assert_eq!(out.len(), q.len(), "attention output");
    let out = Disjoint::new(out);
    let blocks = task.tokens.div_ceil(TOKEN_BLOCK);
    let spans = task.spans();
    let mut partial =
        vec![0.0; if spans > 1 { spans * task.queries() * (task.dim + 2) } else { 0 }];
    let parts = Disjoint::new(&mut partial);
    cpu.team().for_each_chunk(kv.kv_heads() * blocks * spans, 1, &|items| {
        for item in items {
            let (rest, span) = (item / spans, item % spans);
            let block = Block::new(&task, rest / blocks, rest % blocks);
            task.attend(cpu.kernels(), &block, span, spans, &out, &parts);
        }
    });
    if spans > 1 {
        task.join_spans(&partial, spans, &out);
    }
}

/// One call's input.
struct Task<'a> {
    q: &'a [f32],
    kv: KvLayer<'a>,
    start_pos: usize,
    n_heads: usize,
    window: Option<usize>,
    tokens: usize,
    /// Query heads that share a KV head.
    group: usize,
    dim: usize,
}

/// Some tokens' queries of one KV head.
struct Block {
    kv_head: usize,
    tokens: Range<usize>,
    /// The keys that any of the queries sees.
    keys: Range<usize>,
}

impl Block {
    fn new(task: &Task<'_>, kv_head: usize, index: usize) -> Self {
        let tokens = index * TOKEN_BLOCK..((index + 1) * TOKEN_BLOCK).min(task.tokens);
        let keys = task.visible(tokens.start).start..task.visible(tokens.end - 1).end;
        Self { kv_head, tokens, keys }
    }
}

/// The softmax of one query so far.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

impl<'a> Task<'a> {
    fn new(
        q: &'a [f32],
        kv: KvLayer<'a>,
        start_pos: usize,
        n_heads: usize,
        window: Option<usize>,
    ) -> Self {
        let dim = kv.head_dim();
        let tokens = super::tokens("attention queries", q.len(), n_heads * dim);
        assert!(
            n_heads.is_multiple_of(kv.kv_heads()),
            "{n_heads} heads, {} KV heads",
            kv.kv_heads()
        );
        assert!(
            kv.len() >= start_pos + tokens,
            "attention of {tokens} tokens from {start_pos} over {} keys",
            kv.len()
        );
        assert!(window != Some(0), "attention window of 0");
        Self { q, kv, start_pos, n_heads, window, tokens, group: n_heads / kv.kv_heads(), dim }
    }

    /// All queries.
    fn queries(&self) -> usize {
        self.tokens * self.n_heads
    }

    /// The keys that a token sees.
    fn visible(&self, token: usize) -> Range<usize> {
        let end = self.start_pos + token + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Into how many spans each block's keys are cut.
    fn spans(&self) -> usize {
        if self.tokens == 0 || self.tokens > TOKEN_BLOCK {
            return 1;
        }
        Block::new(self, 0, 0).keys.len().div_ceil(SPAN)
    }

    /// Where the query of a token and head is, as a number among all queries.
    fn query(&self, block: &Block, index: usize) -> usize {
        let (token, head) = (block.tokens.start + index / self.group, index % self.group);
        token * self.n_heads + block.kv_head * self.group + head
    }

    /// Attends over one span of a block's keys; writes the result, or the span's part of it.
    #[allow(unsafe_code)]
    fn attend(
        &self,
        kernels: &dyn Kernels,
        block: &Block,
        span: usize,
        spans: usize,
        out: &Disjoint<'_, f32>,
        parts: &Disjoint<'_, f32>,
    ) {
        let (dim, count) = (self.dim, block.tokens.len() * self.group);
        let keys = if spans == 1 {
            block.keys.clone()
        } else {
            let start = block.keys.start + span * SPAN;
            start..(start + SPAN).min(block.keys.end)
        };
        let lengths = [count * dim, count * KEY_BLOCK, count * dim, KEY_BLOCK * dim];
        with_scratch(lengths, |[q, scores, acc, decoded]| {
            self.load_queries(block, q);
            acc.fill(0.0);
            let mut running = vec![Running { max: f32::NEG_INFINITY, sum: 0.0 }; count];
            for start in keys.clone().step_by(KEY_BLOCK) {
                let part = start..(start + KEY_BLOCK).min(keys.end);
                let scores = &mut scores[..count * part.len()];
                scores.fill(0.0);
                let k = plain(kernels, self.kv.keys(block.kv_head, part.clone()), decoded);
                kernels.dots(Rows::packed(k, part.len()), Rows::packed(q, count), scores);
                for (index, running) in running.iter_mut().enumerate() {
                    let scores = &mut scores[index * part.len()..][..part.len()];
                    let acc = &mut acc[index * dim..][..dim];
                    let visible = self.visible(block.tokens.start + index / self.group);
                    running.take(kernels, mask(scores, &part, &visible), acc);
                }
                let v = plain(kernels, self.kv.values(block.kv_head, part.clone()), decoded);
                kernels.weighted_sums(
                    Rows::packed(scores, count),
                    Rows::packed(v, part.len()),
                    acc,
                );
            }
            for (index, running) in running.iter().enumerate() {
                let (query, acc) = (self.query(block, index), &acc[index * dim..][..dim]);
                if spans == 1 {
                    // SAFETY: every query is in one block, which is one item with a single span.
                    let out = unsafe { out.part(query * dim, dim) };
                    out.iter_mut().zip(acc).for_each(|(out, acc)| *out = acc / running.sum);
                } else {
                    // SAFETY: every query and span has a place of its own, and is in one item.
                    let part = unsafe { parts.part((query * spans + span) * (dim + 2), dim + 2) };
                    part[..dim].copy_from_slice(acc);
                    part[dim..].copy_from_slice(&[running.max, running.sum]);
                }
            }
        });
    }

    /// A block's queries, one after the other and scaled.
    fn load_queries(&self, block: &Block, q: &mut [f32]) {
        let scale = 1.0 / (self.dim as f32).sqrt();
        for (index, row) in q.chunks_exact_mut(self.dim).enumerate() {
            let from = &self.q[self.query(block, index) * self.dim..][..self.dim];
            row.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
    }

    /// Puts the spans' parts of each query together: numbers relative to a span's maximum are brought to the
    /// common one.
    #[allow(unsafe_code)]
    fn join_spans(&self, parts: &[f32], spans: usize, out: &Disjoint<'_, f32>) {
        let dim = self.dim;
        for (query, parts) in parts.chunks_exact(spans * (dim + 2)).enumerate() {
            let parts = || parts.chunks_exact(dim + 2);
            let max = parts().map(|part| part[dim]).fold(f32::NEG_INFINITY, f32::max);
            // SAFETY: the team is done; this is the only use of the output now.
            let out = unsafe { out.part(query * dim, dim) };
            out.fill(0.0);
            let mut sum = 0.0;
            // A span outside this query's window holds nothing: its sum is 0.
            for part in parts().filter(|part| part[dim + 1] != 0.0) {
                let factor = (part[dim] - max).exp();
                sum += factor * part[dim + 1];
                super::add_scaled(out, &part[..dim], factor);
            }
            out.iter_mut().for_each(|out| *out /= sum);
        }
    }
}

impl Running {
    /// Takes in the scores of more keys, which become their weights relative to the new maximum; what was
    /// accumulated is brought to that maximum as well.
    fn take(&mut self, kernels: &dyn Kernels, scores: &mut [f32], acc: &mut [f32]) {
        if scores.is_empty() {
            return;
        }
        let max = scores.iter().copied().fold(self.max, f32::max);
        if max > self.max {
            let factor = (self.max - max).exp();
            self.sum *= factor;
            acc.iter_mut().for_each(|acc| *acc *= factor);
            self.max = max;
        }
        self.sum += kernels.exp_sum(scores, max);
    }
}

/// Zeroes the scores of keys that are not visible, and returns the others. `keys` are those scored.
fn mask<'s>(scores: &'s mut [f32], keys: &Range<usize>, visible: &Range<usize>) -> &'s mut [f32] {
    let at = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
    let (start, end) = (at(visible.start), at(visible.end));
    scores[..start].fill(0.0);
    scores[end..].fill(0.0);
    &mut scores[start..end]
}

/// Stored keys or values as f32.
fn plain<'a>(kernels: &dyn Kernels, data: KvData<'a>, decoded: &'a mut [f32]) -> &'a [f32] {
    match data {
        KvData::F32(data) => data,
        KvData::F16(data) => {
            let decoded = &mut decoded[..data.len()];
            kernels.decode_f16(data, decoded);
            decoded
        }
    }
}
