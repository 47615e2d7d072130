//! One token: its queries of a KV head stream through the keys and values as they are stored.

use std::ops::Range;

use super::{Block, Part, Task};
use crate::isa::{QUERIES, SCORES_STEP};
use crate::scratch::with_scratch;

impl Task<'_> {
    pub(super) fn attend_few(&self, block: &Block, keys: Range<usize>, part: &mut Part<'_>) {
        let (dim, kernels) = (self.dim, self.kernels);
        let k = self.kv.keys(block.kv_head, keys.clone());
        let v = self.kv.values(block.kv_head, keys.clone());
        let scores = (keys.len() * QUERIES).next_multiple_of(SCORES_STEP);
        with_scratch([QUERIES * dim, scores], |[q, scores]| {
            for first in (0..self.group).step_by(QUERIES) {
                for (n, q) in q.chunks_exact_mut(dim).enumerate() {
                    // Where there is no other query the last one is taken again: its results are not looked at.
                    self.load_query(block, (first + n).min(self.group - 1), q);
                }
                kernels.scores(k, q, scores);
                let (max, sum) = kernels.softmax(scores);
                kernels.mix(scores, v, dim, &mut part.mixed[first * dim..], dim);
                part.max[first..][..QUERIES].copy_from_slice(&max);
                part.sum[first..][..QUERIES].copy_from_slice(&sum);
            }
        });
    }
}
