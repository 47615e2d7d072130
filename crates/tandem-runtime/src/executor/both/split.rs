//! Which rows of a matrix are whose, and where their results go.

use tandem_cpu::Cpu;
use tandem_cpu::ops;
use tandem_gpu::ops::Output;
use tandem_gpu::{RegionMut, Scope};
use tandem_memory::packed::TILE_ROWS;

/// The results of a product, on both devices.
pub(super) struct Split<'a> {
    /// Rows of the matrix.
    pub(super) rows: usize,
    /// Those that are the GPU's.
    pub(super) first: usize,
    /// Where the GPU's results begin among the parts, if they are there.
    pub(super) at: usize,
    /// Where the devices write.
    pub(super) igpu: &'a mut [f32],
    pub(super) cpu: &'a mut [f32],
    /// Where results belong, if not there.
    out: Option<&'a mut [f32]>,
}

/// Room for results before they are put together, from its start on.
pub(super) struct Parts<'a> {
    pub(super) rest: &'a mut [f32],
    pub(super) taken: usize,
}

impl<'a> Split<'a> {
    /// Results of `inputs` tokens or uses, in their place or among `parts`.
    pub(super) fn new(
        out: &'a mut [f32],
        inputs: usize,
        share: f32,
        parts: Option<&mut Parts<'a>>,
    ) -> Self {
        let rows = out.len() / inputs;
        let first = igpu_rows(rows, share);
        let (at, place, out) = match parts {
            None => (0, out, None),
            Some(parts) => {
                let place = parts.rest.split_off_mut(..out.len()).unwrap_or_default();
                let at = parts.taken;
                parts.taken += out.len();
                (at, place, Some(out))
            }
        };
        let (igpu, cpu) = place.split_at_mut(inputs * first);
        Self { rows, first, at, igpu, cpu, out }
    }

    /// Lends the GPU's place: of a copy of the parts where it has one.
    pub(super) fn lend<'scope>(
        igpu: &'scope mut [f32],
        at: usize,
        copy: Option<&RegionMut<'scope, f32>>,
        scope: &'scope Scope<'scope, '_>,
    ) -> tandem_gpu::Result<RegionMut<'scope, f32>> {
        match copy {
            Some(copy) => Ok(copy.slice_mut(at..at + igpu.len())),
            None => scope.lend_mut(igpu),
        }
    }

    /// Puts rows of results together.
    pub(super) fn join(self, cpu: &Cpu, output: Output) {
        if let Some(out) = self.out {
            let accumulate = output == Output::Add;
            ops::join_rows(cpu, (self.igpu, self.cpu), out, self.rows, accumulate);
        }
    }
}

/// Rows of a matrix that are the GPU's: whole tiles, as near to its share as they come.
pub(super) fn igpu_rows(rows: usize, share: f32) -> usize {
    let tiles = (rows as f32 * share / TILE_ROWS as f32).round() as usize;
    (tiles * TILE_ROWS).min(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_whole_tiles() {
        assert_eq!([0.0, 0.3, 0.5, 1.0].map(|share| igpu_rows(448, share)), [0, 128, 224, 448]);
        assert_eq!(igpu_rows(24, 1.0), 24);
        assert_eq!(igpu_rows(8, 0.4), 0);
    }
}
