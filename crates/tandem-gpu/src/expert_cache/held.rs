//! Experts while kernels that use them are enqueued.

use std::sync::Arc;

use super::lru::Placed;
use super::state::State;
use super::{ExpertCache, ExpertId, MATRICES};
use crate::cl::Queue;
use crate::error::{GpuError, Result};
use crate::gpu::Region;

/// Experts of a layer that kernels are being enqueued for: on the device, or there before the kernels run. They stay
/// until this is dropped.
#[derive(Debug)]
pub struct HeldExperts<'scope> {
    cache: &'scope ExpertCache,
    kernels: &'scope Queue,
    layer: usize,
    slots: Vec<usize>,
}

impl<'scope> HeldExperts<'scope> {
    pub(super) fn none(cache: &'scope ExpertCache, kernels: &'scope Queue, layer: usize) -> Self {
        Self { cache, kernels, layer, slots: Vec::new() }
    }

    /// The layer.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Has experts there for the kernels that are enqueued from now on. Those that are not are uploaded: `load` copies an
    /// expert's gate, up and down matrices.
    ///
    /// # Errors
    /// When the driver fails; when all slots are in use.
    ///
    /// # Panics
    /// When there is no such expert.
    pub fn take(
        &mut self,
        experts: &[usize],
        load: impl FnMut(ExpertId, [&mut [u8]; MATRICES]),
    ) -> Result<()> {
        let layer = self.layer;
        let mut experts = experts.to_vec();
        experts.sort_unstable();
        experts.dedup();
        let state = &mut *self.cache.state.borrow_mut();
        state.timeline.settle(&mut state.statistics)?;
        state.history.record(layer, &experts);
        // Those that are there are held before others take slots.
        let mut missing = Vec::new();
        for id in experts.iter().map(|&expert| ExpertId { layer, expert }) {
            let Some(slot) = state.slots.find(id) else {
                missing.push(id);
                continue;
            };
            self.hold(state, slot);
            state.slots.touch(slot);
            state.statistics.hits += 1;
            let ahead = std::mem::take(&mut state.contents[slot].ahead);
            state.statistics.prefetched_used += u64::from(ahead);
        }
        let mut placed = Vec::new();
        for id in missing {
            let Some(Placed { slot, .. }) = state.place(id) else {
                placed.iter().for_each(|(_, slot)| state.slots.clear(*slot));
                let slots = state.slots.len();
                return Err(GpuError::Cache(format!("all of {slots} slots are in use")));
            };
            self.hold(state, slot);
            state.statistics.misses += 1;
            placed.push((id, slot));
        }
        self.cache.upload(state, &placed, load)?;
        state.tell(self.cache, layer)?;
        let uploads: Vec<_> =
            self.slots.iter().filter_map(|&slot| state.contents[slot].upload.take()).collect();
        if !uploads.is_empty() {
            let ready = self.kernels.marker()?;
            self.kernels.wait_for(&uploads)?;
            state.timeline.wait(ready, uploads);
        }
        Ok(())
    }

    /// All slots, and where a matrix of each expert begins in them: gate, up or down.
    pub(crate) fn places(&self, matrix: usize) -> (Region<'scope, u8>, Region<'scope, u64>) {
        let ExpertCache { shape, slot_bytes, weights, places, .. } = self.cache;
        let n_experts = shape.n_experts;
        let weights = Region::of_buffer(weights, self.cache.slots() * slot_bytes);
        let places = Region::of_buffer(places, shape.n_layers * MATRICES * n_experts);
        let first = (self.layer * MATRICES + matrix) * n_experts;
        (weights, places.slice(first..first + n_experts))
    }

    /// One matrix of an expert.
    ///
    /// # Panics
    /// When the expert is not there.
    pub fn matrix(&self, expert: usize, matrix: usize) -> Region<'scope, u8> {
        let ExpertCache { shape, slot_bytes, state, .. } = self.cache;
        let id = ExpertId { layer: self.layer, expert };
        let Some(slot) = state.borrow().slots.find(id) else { panic!("{id:?} is not there") };
        let first = slot * slot_bytes + shape.offset(matrix);
        self.places(matrix).0.slice(first..first + shape.matrix_bytes[matrix])
    }

    /// Bytes of a matrix of every expert.
    pub(crate) fn matrix_bytes(&self, matrix: usize) -> usize {
        self.cache.shape.matrix_bytes[matrix]
    }

    fn hold(&mut self, state: &mut State, slot: usize) {
        state.slots.hold(slot);
        self.slots.push(slot);
    }
}

impl Drop for HeldExperts<'_> {
    /// Marks the end of the kernels, which the next upload to each slot waits for; also where enqueuing them has
    /// failed or panicked.
    fn drop(&mut self) {
        let end =
            self.kernels.marker().and_then(|end| self.kernels.flush().map(|()| Arc::new(end)));
        if end.is_err() {
            // Without a marker, the kernels are over before anything else happens; or the device is lost.
            let _lost = self.kernels.finish();
        }
        let state = &mut *self.cache.state.borrow_mut();
        for &slot in &self.slots {
            state.contents[slot].last_use = end.as_ref().ok().map(Arc::clone);
            state.slots.release(slot);
        }
    }
}
