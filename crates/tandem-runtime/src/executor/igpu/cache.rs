//! KV pages on a GPU: in place where memory is shared, else copies of those that it has not written itself.
//!
//! The CPU's pages are the whole ones at the end of every pass: what such a GPU has written is brought back. So a text
//! outlives its GPU, and either device may attend to any layer. Pages that sequences have in common are copied once.

use std::ops::Range;

use tandem_gpu::ops::{KvPages, PageTable};
use tandem_gpu::{Gpu, GpuVec, RegionMut, Result, Scope};
use tandem_memory::{KvCache, KvPage, KvPool, KvPoolWatch, KvShape};

/// What a GPU knows of KV caches.
#[derive(Default)]
pub(super) struct DeviceCaches {
    /// One for each sequence of a pass.
    tables: Vec<PageTable>,
    /// Where memory is not shared.
    copies: Vec<PoolCopy>,
}

impl DeviceCaches {
    /// Brings what the GPU lacks to attend to some layers of some caches, the first of these up to so many positions, and
    /// makes their pages known. Where memory is shared, only the latter.
    pub(super) fn bring(
        &mut self,
        gpu: &Gpu,
        own_memory: bool,
        caches: &[&mut KvCache],
        layers: &[usize],
    ) -> Result<()> {
        while self.tables.len() < caches.len() {
            self.tables.push(PageTable::new(gpu)?);
        }
        for (table, kv) in self.tables.iter_mut().zip(caches) {
            table.update(gpu, kv)?;
        }
        if own_memory {
            self.copies.retain(|copy| !copy.pool.is_gone());
            // Room for all of them comes first: what makes room forgets what was there.
            for kv in caches {
                self.copy_of(kv.pool()).fit(gpu, kv)?;
            }
            for kv in caches {
                let copy = self.copy_of(kv.pool());
                layers.iter().try_for_each(|&layer| copy.bring(gpu, kv, layer))?;
            }
        }
        Ok(())
    }

    /// Brings back what a GPU with memory of its own has written at some positions of a cache's layers.
    pub(super) fn bring_back(
        &mut self,
        gpu: &Gpu,
        kv: &mut KvCache,
        layers: &[usize],
        positions: Range<usize>,
    ) -> Result<()> {
        let copy = self.copy_of(kv.pool());
        layers.iter().try_for_each(|&layer| copy.bring_back(gpu, kv, layer, positions.clone()))
    }

    /// Lends caches: the copies of them where there are any.
    pub(super) fn lend<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
        caches: &'scope mut [&mut KvCache],
    ) -> Result<Vec<KvPages<'scope>>> {
        let copies: Vec<(&KvPoolWatch, RegionMut<'scope, u8>)> = self
            .copies
            .iter_mut()
            .filter_map(|copy| Some((&copy.pool, copy.bytes.as_mut()?)))
            .map(|(pool, bytes)| Ok((pool, scope.vec_mut(bytes)?)))
            .collect::<Result<_>>()?;
        let lend = |(kv, table): (&'scope mut &mut KvCache, &'scope PageTable)| {
            let copy = copies.iter().find(|(pool, _)| pool.is_of(kv.pool()));
            match copy {
                Some((_, copy)) => KvPages::lend_copy(scope, kv, copy, table),
                None => KvPages::lend(scope, kv, table),
            }
        };
        caches.iter_mut().zip(&self.tables).map(lend).collect()
    }

    fn copy_of(&mut self, pool: &KvPool) -> &mut PoolCopy {
        let known = self.copies.iter().position(|copy| copy.pool.is_of(pool));
        let index = known.unwrap_or_else(|| {
            self.copies.push(PoolCopy { pool: pool.watch(), bytes: None, stamps: Vec::new() });
            self.copies.len() - 1
        });
        &mut self.copies[index]
    }
}

/// A pool's pages in the memory of a GPU, at the same places.
struct PoolCopy {
    pool: KvPoolWatch,
    /// As many pages as were needed.
    bytes: Option<GpuVec<u8>>,
    /// Of each page and layer, the stamp of what is here.
    stamps: Vec<Vec<Option<u64>>>,
}

impl PoolCopy {
    /// Brings what is not here of a layer.
    fn bring(&mut self, gpu: &Gpu, kv: &KvCache, layer: usize) -> Result<()> {
        let Some(bytes) = &mut self.bytes else { return Ok(()) };
        for page in kv.pages() {
            let here = &mut self.stamps[page.index() as usize][layer];
            if *here != Some(page.stamp(layer)) {
                let (within, at) = places(kv.shape(), page, layer);
                gpu.write_at(bytes, at, &page.bytes()[within])?;
                *here = Some(page.stamp(layer));
            }
        }
        Ok(())
    }

    /// Makes room for all pages of a cache.
    fn fit(&mut self, gpu: &Gpu, kv: &KvCache) -> Result<()> {
        let pages = kv.pages().iter().map(|page| page.index() as usize + 1).max().unwrap_or(0);
        if pages > self.stamps.len() || self.bytes.is_none() {
            let pages = pages.next_power_of_two().min(kv.pool().pages());
            self.stamps.clear();
            // The old one goes first: there may not be room for both.
            self.bytes = None;
            self.bytes = Some(gpu.zeros(pages * kv.shape().page_bytes())?);
            self.stamps = vec![vec![None; kv.layers()]; pages];
        }
        Ok(())
    }

    /// Brings back the pages that the GPU has written some positions of.
    fn bring_back(
        &mut self,
        gpu: &Gpu,
        kv: &mut KvCache,
        layer: usize,
        positions: Range<usize>,
    ) -> Result<()> {
        let (shape, Some(bytes)) = (*kv.shape(), &self.bytes) else { return Ok(()) };
        for index in positions.start / shape.page_tokens..shape.pages(positions.end) {
            let page = &kv.pages()[index];
            self.stamps[page.index() as usize][layer] = Some(page.stamp(layer));
            let (within, at) = places(&shape, page, layer);
            if let Some(page) = kv.page_mut(index) {
                gpu.read_at(bytes, at, &mut page[within])?;
            }
        }
        Ok(())
    }
}

/// Where a layer's part of a page is: in the page, and from which byte of the pool on.
fn places(shape: &KvShape, page: &KvPage, layer: usize) -> (Range<usize>, usize) {
    let start = layer * shape.layer_bytes();
    (start..start + shape.layer_bytes(), page.index() as usize * shape.page_bytes() + start)
}
