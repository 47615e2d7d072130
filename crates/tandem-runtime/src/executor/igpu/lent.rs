//! Activations, keys and values that are lent to a device.

use std::ops::Range;

use tandem_gpu::ops::Uses;
use tandem_gpu::{GpuVec, Region, RegionMut, Result, Scope};
use tandem_memory::{KvCache, KvType};

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
    pub(super) chosen: RegionMut<'scope, u32>,
    pub(super) chosen_weights: RegionMut<'scope, f32>,
    pub(super) uses: Uses<'scope>,
    pub(super) gate: RegionMut<'scope, f32>,
    pub(super) up: RegionMut<'scope, f32>,
    pub(super) down: RegionMut<'scope, f32>,
    pub(super) logits: Option<RegionMut<'scope, f32>>,
    pub(super) best: Option<RegionMut<'scope, u32>>,
    /// Room for what attention makes of each span of keys.
    pub(super) spans: RegionMut<'scope, f32>,
    /// One for each sequence.
    pub(super) caches: Vec<LentCache<'scope>>,
}

/// A KV cache.
pub(super) struct LentCache<'scope> {
    pub(super) kind: KvType,
    bytes: RegionMut<'scope, u8>,
    /// Where each layer's keys and values are.
    places: Vec<[Range<usize>; 2]>,
}

impl<'scope> Lent<'scope> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, '_>,
        acts: &'scope mut Activations,
        spans: &'scope mut GpuVec<f32>,
        caches: &'scope mut [&mut KvCache],
    ) -> Result<Self> {
        let uses = &mut acts.uses;
        let wanted = !acts.logits.is_empty();
        Ok(Self {
            ids: scope.lend(&acts.ids[..])?,
            angles: scope.lend(&acts.angles[..])?,
            x: scope.lend_mut(&mut acts.x[..])?,
            normed: scope.lend_mut(&mut acts.normed[..])?,
            q: scope.lend_mut(&mut acts.q[..])?,
            k: scope.lend_mut(&mut acts.k[..])?,
            v: scope.lend_mut(&mut acts.v[..])?,
            mixed: scope.lend_mut(&mut acts.mixed[..])?,
            router: scope.lend_mut(&mut acts.router[..])?,
            chosen: scope.lend_mut(&mut acts.chosen[..])?,
            chosen_weights: scope.lend_mut(&mut acts.chosen_weights[..])?,
            uses: Uses::new(
                scope.lend_mut(&mut uses.starts[..])?,
                scope.lend_mut(&mut uses.tokens[..])?,
                scope.lend_mut(&mut uses.weights[..])?,
                scope.lend_mut(&mut uses.places[..])?,
            ),
            gate: scope.lend_mut(&mut acts.gate[..])?,
            up: scope.lend_mut(&mut acts.up[..])?,
            down: scope.lend_mut(&mut acts.down[..])?,
            logits: wanted.then(|| scope.lend_mut(&mut acts.logits[..])).transpose()?,
            best: wanted.then(|| scope.lend_mut(&mut acts.best[..])).transpose()?,
            spans: scope.vec_mut(spans)?,
            caches: caches.iter_mut().map(|kv| LentCache::new(scope, kv)).collect::<Result<_>>()?,
        })
    }
}

impl<'scope> LentCache<'scope> {
    fn new(scope: &'scope Scope<'scope, '_>, kv: &'scope mut KvCache) -> Result<Self> {
        Ok(Self {
            kind: kv.kind(),
            places: (0..kv.layers()).map(|layer| kv.places(layer)).collect(),
            bytes: scope.lend_mut(kv.bytes_mut())?,
        })
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> [RegionMut<'scope, u8>; 2] {
        self.places[layer].clone().map(|place| self.bytes.slice_mut(place))
    }
}
