//! Causal attention over the KV cache, with grouped queries and an optional sliding window.
//!
//! Work is cut by KV head and by blocks of tokens, whose queries share one pass over the keys they see. Softmax is
//! computed on the way, with a running maximum (the "online softmax" of FlashAttention, arXiv 2205.14135), so no row of
//! scores is ever held in whole. There are two ways: a token that comes alone reads keys and values straight from the
//! cache ([`few`]); for the tokens of a prompt they are unpacked first ([`many`]).
//!
//! A short input over a long context, a decoded token above all, would leave most threads without work. There the
//! keys are cut into spans as well. Whoever finishes the last span of a block puts the spans' results together.

mod few;
mod many;
mod store;

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use tandem_memory::{KV_BLOCK, KvLayer};

use crate::cpu::Cpu;
use crate::disjoint::Disjoint;
use crate::isa::{AttentionKernels, QUERIES};
use crate::ops::Rope;
use crate::scratch::with_scratch;

pub use store::store_kv;

/// Tokens whose queries share a pass over the keys: with 4 query heads to a KV head, whole panels of every instruction
/// set.
const TOKEN_BLOCK: usize = 24;
/// Keys of a span, for inputs of one block of tokens. Fixed, so that results do not depend on the thread count.
const SPAN: usize = 256;

/// The queries of some tokens.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// `[token][head][head_dim]`.
    pub q: &'a [f32],
    /// Heads of a token.
    pub heads: usize,
    /// Position of the first token.
    pub start: usize,
    /// What rotates them, where that has not been done.
    pub rope: Option<&'a Rope>,
}

/// One sequence's part of [`attention_all`].
pub struct Sequence<'a> {
    /// Its tokens' queries.
    pub queries: Queries<'a>,
    /// Its keys and values, up to and including these tokens.
    pub kv: KvLayer<'a>,
    /// `[token][head][head_dim]`, as the queries are.
    pub out: &'a mut [f32],
}

/// `out = softmax(q k / sqrt(head_dim)) v` for every query head of every token.
///
/// `out` is `[token][head][head_dim]` as the queries are; `kv` holds the sequence up to and including these tokens. Query
/// head `h` reads KV head `h / (n_heads / kv_heads)`. The query at position `i` sees the key at `j` where `j <= i` and,
/// with a window, `j > i - window`.
///
/// # Panics
/// When the shapes do not fit together, or the window is 0.
pub fn attention(
    cpu: &Cpu,
    queries: Queries<'_>,
    kv: KvLayer<'_>,
    window: Option<usize>,
    out: &mut [f32],
) {
    attention_all(cpu, &mut [Sequence { queries, kv, out }], window);
}

/// [`attention`] of several sequences, each over its own keys and values, in one go. What comes of a sequence does not
/// depend on the others.
///
/// # Panics
/// As [`attention`].
pub fn attention_all(cpu: &Cpu, sequences: &mut [Sequence<'_>], window: Option<usize>) {
    // What takes longest is begun first: see `Task::block`.
    let mut sequences: Vec<_> = sequences.iter_mut().collect();
    sequences.sort_by_key(|sequence| Reverse(sequence.queries.q.len() * sequence.kv.len()));
    let (mut items, mut room) = (0, 0);
    let tasks: Vec<Task<'_>> = sequences
        .into_iter()
        .map(|sequence| {
            let task = Task::new(cpu, sequence, window, (items, room));
            (items, room) = (task.items.end, task.room.end);
            task
        })
        .collect();
    with_scratch([room], |[parts]| {
        let parts = Disjoint::new(parts);
        cpu.team().for_each_chunk(items, 1, &|items| {
            for item in items {
                let task = &tasks[tasks.partition_point(|task| task.items.end <= item)];
                task.run(item - task.items.start, &parts);
            }
        });
    });
}

/// One sequence's input and output, and how the work is cut: by KV head and block of tokens ("group"), and span of keys.
struct Task<'a> {
    kernels: &'a dyn AttentionKernels,
    queries: Queries<'a>,
    kv: KvLayer<'a>,
    window: Option<usize>,
    out: Disjoint<'a, f32>,
    tokens: usize,
    /// Query heads that share a KV head.
    group: usize,
    dim: usize,
    /// Whether keys and values are read straight from the cache.
    few: bool,
    blocks: usize,
    spans: usize,
    /// Spans of each group that nobody has finished yet.
    unfinished: Vec<AtomicUsize>,
    /// This sequence's numbers among the items of all.
    items: Range<usize>,
    /// Where what comes of its spans is kept until they are put together.
    room: Range<usize>,
}

/// Some tokens' queries of one KV head.
struct Block {
    kv_head: usize,
    tokens: Range<usize>,
    /// The keys that any of the queries sees.
    keys: Range<usize>,
}

impl Block {
    /// Into how many spans its keys can be cut. Spans end at multiples of [`SPAN`], where pages end too.
    fn spans(&self) -> usize {
        self.keys.end.div_ceil(SPAN) - self.keys.start / SPAN
    }

    /// The keys of a span.
    fn span(&self, index: usize) -> Range<usize> {
        let start = (self.keys.start / SPAN + index) * SPAN;
        start.max(self.keys.start)..(start + SPAN).min(self.keys.end)
    }
}

/// What comes of a block's queries and some of the keys. Rows are padded to what the kernels take at a time.
struct Part<'a> {
    /// `[query][padded dim]`: the values, weighted.
    mixed: &'a mut [f32],
    /// The largest score of each query.
    max: &'a mut [f32],
    /// The sums of the weights, which are relative to that.
    sum: &'a mut [f32],
}

impl<'a> Task<'a> {
    /// `first` are its first item and its first number of room.
    fn new(
        cpu: &'a Cpu,
        sequence: &'a mut Sequence<'_>,
        window: Option<usize>,
        first: (usize, usize),
    ) -> Self {
        let Sequence { queries, kv, ref mut out } = *sequence;
        let (dim, start) = (kv.head_dim(), queries.start);
        let tokens = super::tokens("attention queries", queries.q.len(), queries.heads * dim);
        assert!(
            queries.heads.is_multiple_of(kv.kv_heads()),
            "{} heads, {} KV heads",
            queries.heads,
            kv.kv_heads()
        );
        assert!(
            kv.len() >= start + tokens,
            "attention of {tokens} tokens from {start} over {} keys",
            kv.len()
        );
        assert!(window != Some(0), "attention window of 0");
        assert_eq!(out.len(), queries.q.len(), "attention output");
        let mut task = Self {
            kernels: cpu.attention(),
            queries,
            kv,
            window,
            out: Disjoint::new(out),
            tokens,
            group: queries.heads / kv.kv_heads(),
            dim,
            few: tokens == 1 && dim.is_multiple_of(KV_BLOCK),
            blocks: tokens.div_ceil(TOKEN_BLOCK),
            spans: 1,
            unfinished: Vec::new(),
            items: 0..0,
            room: 0..0,
        };
        if task.blocks == 1 {
            task.spans = task.block(0).spans();
        }
        let groups = kv.kv_heads() * task.blocks;
        task.unfinished.resize_with(groups, || AtomicUsize::new(task.spans));
        task.items = first.0..first.0 + groups * task.spans;
        let room = if task.spans > 1 { groups * task.spans * task.part_len() } else { 0 };
        task.room = first.1..first.1 + room;
        task
    }

    /// Computes one item. `parts` is the room of all sequences.
    #[allow(unsafe_code)]
    fn run(&self, item: usize, parts: &Disjoint<'_, f32>) {
        let (spans, len) = (self.spans, self.part_len());
        let (group, span) = (item / spans, item % spans);
        let block = self.block(group);
        if spans == 1 {
            with_scratch([len], |[part]| {
                self.attend(&block, block.keys.clone(), part);
                self.join(&block, part);
            });
            return;
        }
        // SAFETY: every sequence's group and span has a place of its own, and is one item.
        let part = unsafe { parts.part(self.room.start + item * len, len) };
        self.attend(&block, block.span(span), part);
        if self.unfinished[group].fetch_sub(1, Ordering::AcqRel) == 1 {
            let first = self.room.start + group * spans * len;
            // SAFETY: all spans of the group are finished, and what their threads wrote is seen here.
            let parts = unsafe { parts.part(first, spans * len) };
            self.join(&block, parts);
        }
    }

    /// A block by its number. The last tokens come first: they see the most keys, and work is shared out most evenly
    /// where what takes longest is begun first.
    fn block(&self, group: usize) -> Block {
        let (kv_head, index) = (group / self.blocks, self.blocks - 1 - group % self.blocks);
        let tokens = index * TOKEN_BLOCK..((index + 1) * TOKEN_BLOCK).min(self.tokens);
        let keys = self.visible(tokens.start).start..self.visible(tokens.end - 1).end;
        Block { kv_head, tokens, keys }
    }

    /// The keys that a token sees.
    fn visible(&self, token: usize) -> Range<usize> {
        let end = self.queries.start + token + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// Queries of a block, padded.
    fn rows(&self) -> usize {
        let step = if self.few { QUERIES } else { self.kernels.panel() };
        (self.tokens.min(TOKEN_BLOCK) * self.group).next_multiple_of(step)
    }

    /// Numbers of a row of values, padded.
    fn stride(&self) -> usize {
        self.dim.next_multiple_of(if self.few { 1 } else { self.kernels.strip() })
    }

    /// Numbers of a [`Part`].
    fn part_len(&self) -> usize {
        self.rows() * (self.stride() + 2)
    }

    fn part<'p>(&self, numbers: &'p mut [f32]) -> Part<'p> {
        let rows = self.rows();
        let (mixed, rest) = numbers.split_at_mut(rows * self.stride());
        let (max, sum) = rest.split_at_mut(rows);
        Part { mixed, max, sum }
    }

    /// Attends over some of a block's keys.
    fn attend(&self, block: &Block, keys: Range<usize>, numbers: &mut [f32]) {
        let mut part = self.part(numbers);
        part.mixed.fill(0.0);
        if self.few {
            self.attend_few(block, keys, &mut part);
        } else {
            self.attend_many(block, keys, &mut part);
        }
    }

    /// Where a block's query is, as a number among all queries: queries of a token lie together.
    fn query(&self, block: &Block, row: usize) -> usize {
        let (token, head) = (block.tokens.start + row / self.group, row % self.group);
        token * self.queries.heads + block.kv_head * self.group + head
    }

    /// A block's query, rotated and scaled.
    fn load_query(&self, block: &Block, row: usize, to: &mut [f32]) {
        let scale = 1.0 / (self.dim as f32).sqrt();
        to.copy_from_slice(&self.queries.q[self.query(block, row) * self.dim..][..self.dim]);
        if let Some(rope) = self.queries.rope {
            rope.apply(to, self.queries.start + block.tokens.start + row / self.group);
        }
        to.iter_mut().for_each(|x| *x *= scale);
    }

    /// Puts a block's parts together: numbers relative to a part's largest score are brought to the common one.
    #[allow(unsafe_code)]
    fn join(&self, block: &Block, parts: &[f32]) {
        let (rows, stride, dim) = (self.rows(), self.stride(), self.dim);
        for row in 0..block.tokens.len() * self.group {
            let parts = || {
                parts.chunks_exact(self.part_len()).map(|part| {
                    let (mixed, sums) = part.split_at(rows * stride);
                    (sums[row], sums[rows + row], &mixed[row * stride..][..dim])
                })
            };
            let max = parts().map(|(max, ..)| max).fold(f32::MIN, f32::max);
            // SAFETY: every query is in one block, and a block is joined once.
            let out = unsafe { self.out.part(self.query(block, row) * dim, dim) };
            out.fill(0.0);
            let mut total = 0.0;
            for (part_max, sum, mixed) in parts() {
                let factor = (part_max - max).exp();
                total += factor * sum;
                super::add_scaled(out, mixed, factor);
            }
            let inverse = 1.0 / total;
            out.iter_mut().for_each(|out| *out *= inverse);
        }
    }
}
