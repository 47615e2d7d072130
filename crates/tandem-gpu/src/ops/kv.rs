//! The pages of a sequence's KV cache, lent to a device.

use tandem_memory::{KvCache, KvPage, KvShape};

use crate::error::Result;
use crate::gpu::{Gpu, GpuVec, Region, RegionMut, Scope};

/// The numbers of a sequence's pages, where a device can look them up.
#[derive(Debug)]
pub struct PageTable {
    numbers: GpuVec<u32>,
    /// What was written there.
    pages: Vec<u32>,
}

impl PageTable {
    /// The table of no pages.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { numbers: gpu.zeros(64)?, pages: Vec::new() })
    }

    /// Makes it the table of a cache. Call it between scopes.
    ///
    /// # Errors
    /// When the memory cannot be had, or the driver fails.
    pub fn update(&mut self, gpu: &Gpu, kv: &KvCache) -> Result<()> {
        if self.is_of(kv) {
            return Ok(());
        }
        self.pages.clear();
        if kv.pages().len() > self.numbers.len() {
            self.numbers = gpu.zeros(kv.pages().len().next_power_of_two())?;
        }
        let pages: Vec<u32> = kv.pages().iter().map(KvPage::index).collect();
        gpu.write_at(&mut self.numbers, 0, &pages)?;
        self.pages = pages;
        Ok(())
    }

    fn is_of(&self, kv: &KvCache) -> bool {
        self.pages.iter().copied().eq(kv.pages().iter().map(KvPage::index))
    }
}

/// A sequence's pages that are lent to a device.
#[derive(Clone, Debug)]
pub struct KvPages<'scope> {
    pub(super) shape: KvShape,
    /// The whole pool. What is used of it, the table says.
    pub(super) pool: RegionMut<'scope, u8>,
    pub(super) table: Region<'scope, u32>,
    pages: usize,
    /// The first position that may be written.
    own_from: usize,
}

impl<'scope> KvPages<'scope> {
    /// Lends a cache whose pool is in [shared memory](Gpu::memory).
    ///
    /// # Errors
    /// When it is not.
    ///
    /// # Panics
    /// When the table is not the cache's.
    pub fn lend(
        scope: &Scope<'scope, '_>,
        kv: &'scope mut KvCache,
        table: &'scope PageTable,
    ) -> Result<Self> {
        // The pool is others' too, so it is never borrowed as a whole. Kernels read the pages that the table names, all of
        // which the cache holds, and so nobody writes; and they write those that are the cache's alone.
        let pool = scope.lend_pool(kv.pool())?;
        Self::new(scope, kv, pool, table)
    }

    /// Lends a copy of a cache's pool: pages lie there as in the pool itself.
    ///
    /// # Errors
    /// When the table belongs to another device.
    ///
    /// # Panics
    /// When the table is not the cache's, or one of its pages lies beyond the copy's end.
    pub fn lend_copy(
        scope: &Scope<'scope, '_>,
        kv: &KvCache,
        copy: &RegionMut<'scope, u8>,
        table: &'scope PageTable,
    ) -> Result<Self> {
        Self::new(scope, kv, copy.clone(), table)
    }

    fn new(
        scope: &Scope<'scope, '_>,
        kv: &KvCache,
        pool: RegionMut<'scope, u8>,
        table: &'scope PageTable,
    ) -> Result<Self> {
        assert!(table.is_of(kv), "another cache's page table");
        let (shape, pages) = (*kv.shape(), kv.pages().len());
        let end =
            table.pages.iter().max().map_or(0, |&last| last as usize + 1) * shape.page_bytes();
        assert!(end <= pool.len(), "pages up to byte {end} of {}", pool.len());
        let table = scope.vec(&table.numbers)?;
        Ok(Self { shape, pool, table, pages, own_from: kv.own_from() })
    }

    /// Positions that there are pages for.
    pub fn room(&self) -> usize {
        self.pages * self.shape.page_tokens
    }

    /// Checks that some positions may be written.
    pub(super) fn check_writable(&self, start: usize, tokens: usize) {
        assert!(start + tokens <= self.room(), "{tokens} tokens from {start} of {}", self.room());
        assert!(start >= self.own_from, "position {start} of a page that others have too");
    }
}
