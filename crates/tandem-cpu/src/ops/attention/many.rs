//! Several tokens: keys and values are unpacked some at a time, small enough for the second-level cache, and every panel of
//! queries takes them from there.

use std::ops::Range;

use super::{Block, Part, Task};
use crate::isa::{KEY_STEP, Running};
use crate::scratch::with_scratch;

/// Keys that are unpacked at a time: with their values 72 KiB at heads of 128.
const KEY_BLOCK: usize = 72;
const _: () = assert!(KEY_BLOCK.is_multiple_of(KEY_STEP));

impl Task<'_> {
    pub(super) fn attend_many(&self, block: &Block, keys: Range<usize>, part: &mut Part<'_>) {
        let (rows, stride, dim) = (self.rows(), self.stride(), self.dim);
        let (kernels, panel) = (self.kernels, self.kernels.panel());
        part.max.fill(f32::MIN);
        part.sum.fill(0.0);
        let lengths = [rows * dim, dim, KEY_BLOCK * dim, KEY_BLOCK * stride, KEY_BLOCK * panel];
        with_scratch(lengths, |[panels, query, k, v, scores]| {
            self.load_panels(block, panels, query);
            for start in keys.clone().step_by(KEY_BLOCK) {
                let keys = start..(start + KEY_BLOCK).min(keys.end);
                let v = &mut v[..keys.len() * stride];
                let scores = &mut scores[..keys.len().next_multiple_of(KEY_STEP) * panel];
                kernels.unpack_keys(
                    self.kv.keys(block.kv_head, keys.clone()),
                    &mut k[..keys.len() * dim],
                );
                kernels.unpack_values(self.kv.values(block.kv_head, keys.clone()), dim, v);
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
    fn load_panels(&self, block: &Block, panels: &mut [f32], query: &mut [f32]) {
        let panel = self.kernels.panel();
        for row in 0..block.tokens.len() * self.group {
            self.load_query(block, row, query);
            let to = &mut panels[row / panel * panel * self.dim + row % panel..];
            for (to, x) in to.iter_mut().step_by(panel).zip(&*query) {
                *to = *x;
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
        for (key, scores) in keys.clone().zip(scores.chunks_exact_mut(self.kernels.panel())) {
            for (row, score) in scores.iter_mut().enumerate() {
                if !self.visible(self.token(block, first_row + row)).contains(&key) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}
