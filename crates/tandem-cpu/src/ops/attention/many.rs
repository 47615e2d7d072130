//! Several tokens: keys and values are unpacked some at a time, small enough for the second-level cache, and every panel of
//! queries takes them from there.

use std::ops::Range;

use super::{Block, Part, Task};
use crate::isa::{KEY_STEP, Running};
use crate::scratch::with_scratch;

/// Keys that are unpacked at a time: with their values 72 KiB at heads of 128.
const KEY_BLOCK: usize = 72;
const _: () = assert!(KEY_BLOCK.is_multiple_of(KEY_STEP));
/// Queries that are put into a panel together, which they divide: they fill a part of a cache line of each row.
const TOGETHER: usize = 8;

impl Task<'_> {
    pub(super) fn attend_many(&self, block: &Block, keys: Range<usize>, part: &mut Part<'_>) {
        let (rows, stride, dim) = (self.rows(), self.stride(), self.dim);
        let (kernels, panel) = (self.kernels, self.kernels.panel());
        part.max.fill(f32::MIN);
        part.sum.fill(0.0);
        let lengths =
            [rows * dim, TOGETHER * dim, KEY_BLOCK * dim, KEY_BLOCK * stride, KEY_BLOCK * panel];
        with_scratch(lengths, |[panels, queries, k, v, scores]| {
            self.load_panels(block, panels, queries);
            for start in keys.clone().step_by(KEY_BLOCK) {
                let keys = start..(start + KEY_BLOCK).min(keys.end);
                let v = &mut v[..keys.len() * stride];
                let scores = &mut scores[..keys.len().next_multiple_of(KEY_STEP) * panel];
                for run in self.kv.runs(keys.clone()) {
                    let at = run.start - keys.start..run.end - keys.start;
                    let k = &mut k[at.start * dim..at.end * dim];
                    kernels.unpack_keys(self.kv.keys(block.kv_head, run.clone()), k);
                    let place = (at.start, keys.len());
                    kernels.unpack_values(self.kv.values(block.kv_head, run), dim, v, place);
                }
                for (index, q) in panels.chunks_exact(panel * dim).enumerate() {
                    let rows = index * panel..(index + 1) * panel;
                    let Some(edges) = self.edges(block, &keys, rows.clone()) else { continue };
                    kernels.panel_scores(k, keys.len(), q, scores);
                    let scores = &mut scores[..keys.len() * panel];
                    if edges {
                        self.mask(block, &keys, rows.start, scores);
                    }
                    let mut running = Running {
                        max: &mut part.max[rows.clone()],
                        sum: &mut part.sum[rows.clone()],
                        mixed: &mut part.mixed[rows.start * stride..rows.end * stride],
                    };
                    kernels.panel_softmax(scores, &mut running);
                    kernels.panel_mix(scores, v, running.mixed);
                }
            }
        });
    }

    /// The queries in panels, `[number][query]`. What is beyond the last query does not matter.
    fn load_panels(&self, block: &Block, panels: &mut [f32], queries: &mut [f32]) {
        let (dim, panel) = (self.dim, self.kernels.panel());
        let rows = block.tokens.len() * self.group;
        for (index, panel_out) in panels.chunks_exact_mut(panel * dim).enumerate() {
            let first = index * panel;
            for first in (first..rows.min(first + panel)).step_by(TOGETHER) {
                for (row, query) in (first..rows).zip(queries.chunks_exact_mut(dim)) {
                    self.load_query(block, row, query);
                }
                transpose(queries, &mut panel_out[first % panel..], panel);
            }
        }
    }

    /// The token of a row. Rows beyond the last query go with the last token.
    fn token(&self, block: &Block, row: usize) -> usize {
        (block.tokens.start + row / self.group).min(block.tokens.end - 1)
    }

    /// Whether some of a panel's queries do not see all of the keys. None if no query sees any.
    fn edges(&self, block: &Block, keys: &Range<usize>, rows: Range<usize>) -> Option<bool> {
        let [first, last] =
            [rows.start, rows.end - 1].map(|row| self.visible(self.token(block, row)));
        let seen = first.start < keys.end && keys.start < last.end;
        seen.then_some(last.start > keys.start || first.end < keys.end)
    }

    /// Makes the scores of keys that a query does not see negative infinity.
    fn mask(&self, block: &Block, keys: &Range<usize>, first_row: usize, scores: &mut [f32]) {
        let panel = self.kernels.panel();
        for row in 0..panel {
            let seen = self.visible(self.token(block, first_row + row));
            let from = seen.start.clamp(keys.start, keys.end);
            let to = seen.end.clamp(from, keys.end);
            for key in (keys.start..from).chain(to..keys.end) {
                scores[(key - keys.start) * panel + row] = f32::NEG_INFINITY;
            }
        }
    }
}

/// Puts [`TOGETHER`] rows into as many columns of `to`, whose rows are `stride` numbers apart.
fn transpose(rows: &[f32], to: &mut [f32], stride: usize) {
    let dim = rows.len() / TOGETHER;
    let rows: [&[f32]; TOGETHER] = std::array::from_fn(|n| &rows[n * dim..][..dim]);
    for (at, to) in to.chunks_mut(stride).enumerate() {
        let to = &mut to[..TOGETHER];
        for (to, row) in to.iter_mut().zip(rows) {
            *to = row[at];
        }
    }
}
