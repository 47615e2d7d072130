//! The pages of all texts: who may take some, and what is kept of texts that have ended.

use tandem_memory::{KvCache, KvPage, KvPool};

use super::prefix::Prefixes;
use crate::error::Result;
use crate::text::{Context, common};

pub(super) struct Pages {
    empty: KvCache,
    prefixes: Prefixes,
}

/// What is there already of some ids.
pub(super) struct Found {
    pages: Vec<KvPage>,
    pub(super) len: usize,
}

impl Pages {
    /// For texts of up to `context` tokens each.
    pub(super) fn new(pool: &KvPool, context: usize) -> Self {
        let empty = KvCache::in_pool(pool, context.min(pool.tokens()));
        Self { empty, prefixes: Prefixes::default() }
    }

    fn pool(&self) -> &KvPool {
        self.empty.pool()
    }

    fn page_tokens(&self) -> usize {
        self.empty.shape().page_tokens
    }

    /// What was kept of some ids.
    pub(super) fn find(&mut self, ids: &[u32]) -> Found {
        let (pages, len) = self.prefixes.find(ids, self.page_tokens());
        Found { pages, len }
    }

    /// What `other` has of some ids.
    pub(super) fn find_in(&self, other: &Context, ids: &[u32]) -> Found {
        let len = common(&other.ids[..other.ids.len().min(other.kv.len())], ids);
        Found { pages: other.kv.pages()[..self.empty.shape().pages(len)].to_vec(), len }
    }

    /// A context that begins with what was found of some ids. Where a page cannot be had, with its full pages only.
    pub(super) fn context(&mut self, found: Found, ids: &[u32]) -> Result<Context> {
        let Found { pages, mut len } = found;
        let within = len % self.page_tokens();
        if within > 0 && !self.make_room(1) {
            len -= within;
        }
        let kv = self.empty.beginning_with(&pages, len)?;
        Ok(Context { kv, ids: ids[..len].to_vec() })
    }

    /// Pages that a text takes which is to go on after some ids, of those that are [available](Self::available).
    pub(super) fn needed(&mut self, ids: &[u32]) -> usize {
        let Found { pages, len } = self.find(ids);
        // Somebody has these, and the list here and the index too.
        let full = len / self.page_tokens();
        let in_use = pages[..full].iter().filter(|page| page.owners() > 2).count();
        self.empty.shape().pages(ids.len() + 1) - in_use
    }

    /// Pages that nobody has, or could be given up.
    pub(super) fn available(&self) -> usize {
        self.pool().free_pages() + self.prefixes.evictable()
    }

    /// Has so many pages free, if need be by giving up what was kept. Answers whether it could.
    pub(super) fn make_room(&mut self, pages: usize) -> bool {
        while self.pool().free_pages() < pages {
            if !self.prefixes.evict() {
                return false;
            }
        }
        true
    }

    /// Keeps what a text leaves behind, for texts that begin alike.
    pub(super) fn keep(&mut self, context: &Context) {
        let len = context.ids.len().min(context.kv.len());
        self.prefixes.keep(&context.ids[..len], context.kv.pages(), self.page_tokens());
    }

    /// Keeps the full pages of a text that goes on, where there are others than were `offered`: nobody will write to them any
    /// more.
    pub(super) fn offer(&mut self, context: &Context, offered: &mut usize) {
        let page_tokens = self.page_tokens();
        let full = context.ids.len().min(context.kv.len()) / page_tokens;
        if full != *offered {
            let ids = &context.ids[..full * page_tokens];
            self.prefixes.keep_in_use(ids, context.kv.pages(), page_tokens);
            *offered = full;
        }
    }
}
