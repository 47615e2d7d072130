//! One token: its queries of a KV head stream through the keys and values as they are stored, page by page.

use std::ops::Range;

use tandem_memory::KvData;

use super::{Block, Part, Task};
use crate::isa::{QUERIES, SCORES_STEP};
use crate::scratch::with_scratch;

impl Task<'_> {
    pub(super) fn attend_few(&self, block: &Block, keys: Range<usize>, part: &mut Part<'_>) {
        let (dim, kernels, head) = (self.dim, self.kernels, block.kv_head);
        let runs = self.kv.runs(keys.clone());
        let k = || runs.clone().map(|run| self.kv.keys(head, run));
        let v = || runs.clone().map(|run| self.kv.values(head, run));
        let then = [v().next(), self.following(block, keys.end)];
        let padded = (keys.len() * QUERIES).next_multiple_of(SCORES_STEP);
        // A run may begin at any key, and has a whole step's room.
        with_scratch([QUERIES * dim, padded + SCORES_STEP], |[q, scores]| {
            for first in (0..self.group).step_by(QUERIES) {
                for (n, q) in q.chunks_exact_mut(dim).enumerate() {
                    // Where there is no other query the last one is taken again: its results are not looked at.
                    self.load_query(block, (first + n).min(self.group - 1), q);
                }
                let mut at = 0;
                for (run, next) in chained(k(), then[0]) {
                    let count = run.len() / dim * QUERIES;
                    let scores = &mut scores[at..][..count.next_multiple_of(SCORES_STEP)];
                    kernels.scores(run, next, q, scores);
                    at += count;
                }
                scores[at..padded].fill(f32::NEG_INFINITY);
                let (max, sum) = kernels.softmax(&mut scores[..padded]);
                let mut weights = &scores[..at];
                for (run, next) in chained(v(), then[1]) {
                    let mixed = &mut part.mixed[first * dim..];
                    kernels.mix(weights, run, next, dim, mixed, dim);
                    weights = &weights[run.len() / dim * QUERIES..];
                }
                part.max[first..][..QUERIES].copy_from_slice(&max);
                part.sum[first..][..QUERIES].copy_from_slice(&sum);
            }
        });
    }

    /// The keys that are read after the values up to `end`, if it is the same thread that reads on: those of the next span,
    /// or of the next head's first.
    fn following(&self, block: &Block, end: usize) -> Option<KvData<'_>> {
        let (head, first) = match end < block.keys.end {
            true => (block.kv_head, end),
            false => (block.kv_head + 1, block.keys.start),
        };
        (head < self.kv.kv_heads()).then(|| self.kv.keys(head, first..first + 1))
    }
}

/// Each run with the place where the next one begins; after the last comes `then`, or what follows it in memory.
fn chained<'k>(
    runs: impl Iterator<Item = KvData<'k>>,
    then: Option<KvData<'k>>,
) -> impl Iterator<Item = (KvData<'k>, *const u8)> {
    let mut runs = runs.peekable();
    std::iter::from_fn(move || {
        let run = runs.next()?;
        let next = runs.peek().copied().or(then);
        Some((run, next.map_or(run.start().wrapping_add(run.n_bytes()), KvData::start)))
    })
}
