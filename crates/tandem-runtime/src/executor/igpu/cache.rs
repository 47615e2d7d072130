//! The KV cache on a GPU: in place where memory is shared, else a copy of what it has not written itself.
//!
//! The CPU's cache is the whole one at the end of every pass: what such a GPU has written is brought back. So a text
//! outlives its GPU, and either device may attend to any layer.

use std::ops::Range;

use tandem_gpu::{Gpu, GpuVec, Result, Scope};
use tandem_memory::KvCache;

use super::lent::LentCache;

/// Puts copies into the order of some caches: each cache's own where there is one, else one that is not of these.
pub(super) fn assign(copies: &mut Vec<CacheCopy>, caches: &[&mut KvCache]) {
    let own: Vec<Option<CacheCopy>> = caches
        .iter()
        .map(|kv| copies.iter().position(|copy| copy.knows(kv)).map(|index| copies.remove(index)))
        .collect();
    let others = std::mem::take(copies);
    let mut others = others.into_iter();
    copies.extend(own.into_iter().map(|own| own.or_else(|| others.next()).unwrap_or_default()));
    copies.extend(others);
}

/// What a GPU with memory of its own knows of a cache.
#[derive(Default)]
pub(super) struct CacheCopy {
    bytes: Option<GpuVec<u8>>,
    /// Of each layer the stamp, and how many positions are here.
    layers: Vec<(u64, usize)>,
}

impl CacheCopy {
    /// Whether something of this cache, as it is, is here.
    fn knows(&self, kv: &KvCache) -> bool {
        self.layers.iter().zip(0..kv.layers()).any(|(&(stamp, _), layer)| stamp == kv.stamp(layer))
    }

    /// Brings what the GPU lacks of a layer's first `positions`.
    pub(super) fn bring(
        &mut self,
        gpu: &Gpu,
        kv: &mut KvCache,
        layer: usize,
        positions: usize,
    ) -> Result<()> {
        let size = kv.bytes();
        if self.bytes.as_ref().is_none_or(|bytes| bytes.len() < size) {
            self.bytes = Some(gpu.zeros(size)?);
            self.layers.clear();
        }
        self.layers.resize(self.layers.len().max(kv.layers()), (u64::MAX, 0));
        let (stamp, here) = self.layers[layer];
        let here = if stamp == kv.stamp(layer) { here } else { 0 };
        for rows in rows(kv, layer, here.min(positions)..positions) {
            if let Some(bytes) = &mut self.bytes {
                gpu.write_at(bytes, rows.start, &kv.bytes_mut()[rows])?;
            }
        }
        Ok(())
    }

    /// Brings back what the GPU has written at some positions of a layer.
    pub(super) fn bring_back(
        &mut self,
        gpu: &Gpu,
        kv: &mut KvCache,
        layer: usize,
        positions: Range<usize>,
    ) -> Result<()> {
        self.layers[layer] = (kv.stamp(layer), positions.end);
        for rows in rows(kv, layer, positions) {
            if let Some(bytes) = &self.bytes {
                gpu.read_at(bytes, rows.start, &mut kv.bytes_mut()[rows])?;
            }
        }
        Ok(())
    }

    /// Lends the cache: the copy of it where there is one.
    pub(super) fn lend<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
        kv: &'scope mut KvCache,
    ) -> Result<LentCache<'scope>> {
        let (kind, layers) = (kv.kind(), kv.layers());
        let places = (0..layers).map(|layer| kv.places(layer)).collect();
        let bytes = match &mut self.bytes {
            Some(bytes) => scope.vec_mut(bytes)?,
            None => scope.lend_mut(kv.bytes_mut())?,
        };
        Ok(LentCache::new(kind, bytes, places))
    }
}

/// Where some positions of a layer's keys and values are: a run of bytes for each head.
fn rows(kv: &KvCache, layer: usize, positions: Range<usize>) -> Vec<Range<usize>> {
    let (row, head) = (kv.row_bytes(), kv.row_bytes() * kv.capacity());
    if positions.is_empty() {
        return Vec::new();
    }
    let of_place = |place: Range<usize>| {
        let positions = positions.clone();
        (0..kv.kv_heads()).map(move |index| {
            let start = place.start + index * head;
            start + positions.start * row..start + positions.end * row
        })
    };
    kv.places(layer).into_iter().flat_map(of_place).collect()
}
