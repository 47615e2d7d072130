//! Activations, keys and values that are lent to a device.

use tandem_gpu::ops::{KvPages, Uses};
use tandem_gpu::{GpuVec, Region, RegionMut, Result, Scope};

use crate::executor::activations::Activations;

/// See [`Activations`] for what they are.
pub(super) struct Lent<'scope> {
    pub(super) ids: Region<'scope, u32>,
    pub(super) angles: Region<'scope, f32>,
    pub(super) x: RegionMut<'scope, f32>,
    pub(super) normed: RegionMut<'scope, f32>,
    pub(super) q: RegionMut<'scope, f32>,
    pub(super) k: RegionMut<'scope, f32>,
    pub(super) v: RegionMut<'scope, f32>,
    pub(super) mixed: RegionMut<'scope, f32>,
    pub(super) router: RegionMut<'scope, f32>,
    chosen: RegionMut<'scope, u32>,
    pub(super) chosen_weights: RegionMut<'scope, f32>,
    pub(super) uses: Uses<'scope>,
    pub(super) gate: RegionMut<'scope, f32>,
    pub(super) up: RegionMut<'scope, f32>,
    pub(super) down: RegionMut<'scope, f32>,
    pub(super) logits: Option<RegionMut<'scope, f32>>,
    pub(super) best: Option<RegionMut<'scope, u32>>,
    /// Room for what attention makes of each span of keys.
    pub(super) spans: RegionMut<'scope, f32>,
    /// One for each sequence, where there is attention to compute.
    pub(super) caches: Vec<KvPages<'scope>>,
}

impl<'scope> Lent<'scope> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, '_>,
        acts: &'scope mut Activations,
        spans: &'scope mut GpuVec<f32>,
        caches: Vec<KvPages<'scope>>,
    ) -> Result<Self> {
        let wanted = !acts.logits.is_empty();
        Ok(Self {
            ids: acts.ids.lend(scope)?,
            angles: acts.angles.lend(scope)?,
            x: acts.x.lend_mut(scope)?,
            normed: acts.normed.lend_mut(scope)?,
            q: acts.q.lend_mut(scope)?,
            k: acts.k.lend_mut(scope)?,
            v: acts.v.lend_mut(scope)?,
            mixed: acts.mixed.lend_mut(scope)?,
            router: acts.router.lend_mut(scope)?,
            chosen: acts.chosen.lend_mut(scope)?,
            chosen_weights: acts.chosen_weights.lend_mut(scope)?,
            uses: acts.uses.lend(scope)?,
            gate: acts.gate.lend_mut(scope)?,
            up: acts.up.lend_mut(scope)?,
            down: acts.down.lend_mut(scope)?,
            logits: wanted.then(|| acts.logits.lend_mut(scope)).transpose()?,
            best: wanted.then(|| acts.best.lend_mut(scope)).transpose()?,
            spans: scope.vec_mut(spans)?,
            caches,
        })
    }
}

impl<'scope> Lent<'scope> {
    /// The experts of each token in a layer.
    pub(super) fn chosen(&self, layer: usize) -> RegionMut<'scope, u32> {
        let uses = self.chosen_weights.len();
        self.chosen.slice_mut(layer * uses..(layer + 1) * uses)
    }
}
