//! What steps cost on a GPU.

use std::time::{Duration, Instant};

use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::{Igpu, of_layer};
use crate::error::Result;
use crate::executor::batch::Batch;
use crate::model::Model;
use crate::plan::Step;
use crate::profile::{Operation as Op, Profile};
use tandem_model::TensorId;

/// Bytes of weights, keys and values that a step reads, and its arithmetic. Of experts those are read that are `used`; where
/// that is not known, since the choice itself is the GPU's, as many as the tokens can choose at most: with one token it
/// is no less.
pub(in crate::executor) fn cost(
    model: &Model,
    batch: &Batch,
    step: Step,
    used: Option<usize>,
) -> (usize, usize) {
    let config = model.config();
    let layer = usize::from(step.layer.unwrap_or_default());
    let tokens = batch.ids.len();
    let dense = |ids: &[TensorId], tokens: usize| {
        let matrices = ids.iter().map(|&id| model.matrix(id));
        matrices.fold((0, 0), |(bytes, arithmetic), matrix| {
            let products = 2 * matrix.rows() * matrix.cols() * tokens;
            (bytes + matrix.n_bytes(), arithmetic + products)
        })
    };
    let uses = EXPERTS_PER_TOKEN * tokens;
    let experts = |tensors: &[L]| {
        let ids: Vec<_> = tensors.iter().map(|&tensor| of_layer(layer, tensor)).collect();
        let (bytes, arithmetic) = dense(&ids, 1);
        (bytes * used.unwrap_or(uses.min(config.n_experts)), arithmetic * uses)
    };
    let of_layer = |tensors: &[L]| {
        let ids: Vec<_> = tensors.iter().map(|&tensor| of_layer(layer, tensor)).collect();
        dense(&ids, tokens)
    };
    match step.operation {
        Op::AttentionQkvProj => of_layer(&[L::QWeight, L::KWeight, L::VWeight]),
        Op::AttentionCompute => batch.attention_cost(config),
        Op::AttentionOutputProj => of_layer(&[L::OWeight]),
        Op::RouterLogits => of_layer(&[L::RouterWeight]),
        Op::ExpertFfnW1 => experts(&[L::ExpertGate(0), L::ExpertUp(0)]),
        Op::ExpertFfnW2 => experts(&[L::ExpertDown(0)]),
        Op::LmHead => dense(&[TensorId::LmHeadWeight], batch.n_wanted()),
        Op::Embedding => (tokens * model.matrix(TensorId::TokenEmbedding).row_bytes(), 0),
        _ => (0, 0),
    }
}

/// A wait is one for the device from so much time on.
const REAL_WAIT: Duration = Duration::from_micros(30);

impl Igpu {
    /// Keeps times of kernels from now on, or no longer.
    ///
    /// # Errors
    /// When the driver fails.
    pub(in crate::executor) fn record_times(&mut self, wanted: bool) -> tandem_gpu::Result<()> {
        self.recording = wanted;
        self.gpu.record_times(wanted)
    }

    /// Adds the times of kernels to the profile: of each operation those that were launched up to its mark, counted as
    /// [`tandem_gpu::Gpu::launches`] counts.
    ///
    /// # Errors
    /// When the driver has no times.
    pub(in crate::executor) fn add_times(
        &mut self,
        profile: &mut Profile,
        first: usize,
        marks: &[(Op, usize)],
    ) -> Result<()> {
        self.step_times.clear();
        if !self.recording {
            return Ok(());
        }
        let intervals = self.gpu.take_intervals()?;
        let (now, last) = (profile.mark(), intervals.last().map_or(0, |&(_, (_, end))| end));
        // A wait for the last kernel has just ended; where the CPU did not have to wait, since it had something else to do,
        // nobody knows for how long that kernel has been done, but by an earlier wait.
        let has_waited = now - profile.worked_until() > REAL_WAIT;
        let (then, clock) = *match &mut self.clock {
            Some(clock) if !has_waited => clock,
            clock => clock.insert((now, last)),
        };
        let at = |time: u64| match time.checked_sub(clock) {
            Some(later) => (then + Duration::from_nanos(later)).min(now),
            None => then - Duration::from_nanos(clock - time),
        };
        let (mut intervals, mut start) = (intervals.into_iter(), first);
        let mut until = now;
        for &(operation, end) in marks {
            let kernels = intervals.by_ref().take(end - start).map(|(_, interval)| interval);
            let kernels: Vec<(u64, u64)> = kernels.collect();
            let time = kernels.iter().map(|(start, end)| end.saturating_sub(*start)).sum();
            profile.on_gpu(operation, Duration::from_nanos(time));
            let begun = kernels.first().map_or(until, |&(start, _)| at(start));
            until = kernels.last().map_or(begun, |&(_, end)| at(end));
            self.step_times.push((begun, until));
            start = end;
        }
        Ok(())
    }

    /// When each step of the newest run began and when it ended; nothing where times are not kept.
    pub(in crate::executor) fn step_times(
        &self,
    ) -> impl Iterator<Item = (Instant, Instant)> + use<'_> {
        self.step_times.iter().copied()
    }
}
