//! The keys and values of one sequence: a list of pages.

use super::{KvError, KvLayer, KvPage, KvPart, KvPool, KvShape, KvType};
use crate::aligned::{Allocator, SystemMemory};

/// Keys and values of one sequence, for every layer.
#[derive(Debug)]
pub struct KvCache {
    pool: KvPool,
    pages: Vec<KvPage>,
    /// Positions written so far, for each layer.
    written: Vec<usize>,
    capacity: usize,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens, in a pool of its own. Memory is committed only as positions are
    /// written.
    ///
    /// # Errors
    /// As [`KvPool::new`].
    pub fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
        kind: KvType,
    ) -> Result<Self, KvError> {
        let shape = KvShape::new(layers, kv_heads, head_dim, kind);
        Self::new_in(&SystemMemory, shape, capacity)
    }

    /// As [`Self::new`], in memory from `allocator`.
    ///
    /// # Errors
    /// As [`KvPool::new`].
    pub fn new_in(
        allocator: &dyn Allocator,
        shape: KvShape,
        capacity: usize,
    ) -> Result<Self, KvError> {
        Ok(Self::in_pool(&KvPool::new(allocator, shape, capacity)?, capacity))
    }

    /// An empty cache for up to `capacity` tokens, whose pages come from `pool` as they are needed.
    pub fn in_pool(pool: &KvPool, capacity: usize) -> Self {
        let (pool, written) = (pool.clone(), vec![0; pool.shape().layers]);
        Self { pool, pages: Vec::new(), written, capacity }
    }

    /// A cache of the same kind that begins with `len` tokens which are in these pages already. The last page, where it is
    /// not full of them, is copied: the sequences part there.
    ///
    /// # Errors
    /// When there is no page left for the copy.
    ///
    /// # Panics
    /// When there are fewer pages than so many tokens take, or they are another pool's, or `len` is beyond the capacity.
    pub fn beginning_with(&self, pages: &[KvPage], len: usize) -> Result<Self, KvError> {
        let mut cache = Self::in_pool(&self.pool, self.capacity);
        assert!(len <= self.capacity, "{len} tokens in a cache of {}", self.capacity);
        assert!(pages.iter().all(|page| page.is_of(&self.pool)), "pages of another pool");
        cache.pages = pages[..self.shape().pages(len)].to_vec();
        cache.written.fill(len);
        if !len.is_multiple_of(self.shape().page_tokens) {
            cache.part_from_others(cache.pages.len() - 1)?;
        }
        Ok(cache)
    }

    /// Tokens that every layer holds.
    pub fn len(&self) -> usize {
        self.written.iter().copied().min().unwrap_or(0)
    }

    /// Whether no token is held by every layer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that the cache may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.written.len()
    }

    /// How keys and values are stored.
    pub fn kind(&self) -> KvType {
        self.shape().kind
    }

    /// The shape of its pages.
    pub fn shape(&self) -> &KvShape {
        self.pool.shape()
    }

    /// Where its pages come from.
    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Its pages, in the order of positions.
    pub fn pages(&self) -> &[KvPage] {
        &self.pages
    }

    /// A page's bytes for writing, where no other cache has it.
    pub fn page_mut(&mut self, page: usize) -> Option<&mut [u8]> {
        self.pages[page].bytes_mut()
    }

    /// Bytes of the pages that it has.
    pub fn bytes(&self) -> usize {
        self.pages.len() * self.shape().page_bytes()
    }

    /// Bytes that one token takes, over all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.shape().token_bytes()
    }

    /// Forgets every position from `len` on, and gives pages back that are not needed; forgets nothing where the cache is
    /// shorter.
    pub fn truncate(&mut self, len: usize) {
        for written in &mut self.written {
            *written = len.min(*written);
        }
        let longest = self.written.iter().copied().max().unwrap_or(0);
        self.pages.truncate(self.shape().pages(longest));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Takes the pages that it needs to be of `len` tokens, and makes those its own that positions from its present length
    /// on are in. Whatever is written after that finds its place.
    ///
    /// # Errors
    /// When the tokens are too many, or others have the pages. The cache has then as many pages as before.
    pub fn reserve(&mut self, len: usize) -> Result<(), KvError> {
        self.own(self.len(), len)
    }

    /// Pages that the pool must have for [`Self::reserve`] to succeed.
    pub fn missing_pages(&self, len: usize) -> usize {
        let first = self.len() / self.shape().page_tokens;
        let shared = self.pages.iter().skip(first).filter(|page| page.is_shared()).count();
        shared + self.shape().pages(len).saturating_sub(self.pages.len())
    }

    /// Stores the keys and values (`[token][kv_head][head_dim]`) of one or more tokens of `layer`, the first of
    /// them at position `pos`. What the layer held from `pos` on is forgotten.
    ///
    /// # Errors
    /// When the tokens do not fit, `pos` would leave a hole, or the slices are not of whole tokens. The cache then holds
    /// what it did.
    pub fn write(&mut self, layer: usize, pos: usize, k: &[f32], v: &[f32]) -> Result<(), KvError> {
        let (heads, dim) = (self.shape().kv_heads, self.shape().head_dim);
        for mut part in self.parts(layer, pos, k, v, usize::MAX)? {
            let head = part.head();
            for token in part.tokens() {
                let row = (token * heads + head) * dim..(token * heads + head + 1) * dim;
                part.write(token, &k[row.clone()], &v[row]);
            }
        }
        Ok(())
    }

    /// The places of what [`Self::write`] would store, for several threads to fill: a part for every KV head and
    /// every `len` tokens, or fewer where a page ends. The layer counts the tokens as held from now on, so all of them
    /// must be filled.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn parts(
        &mut self,
        layer: usize,
        pos: usize,
        k: &[f32],
        v: &[f32],
        len: usize,
    ) -> Result<Vec<KvPart<'_>>, KvError> {
        let tokens = self.check_write(layer, pos, k, v)?;
        self.claim(layer, pos, tokens)?;
        let (shape, page_tokens) = (*self.shape(), self.shape().page_tokens);
        let first_page = pos / page_tokens;
        let touched = shape.pages(pos + tokens).max(first_page);
        let mut parts = Vec::new();
        for (index, page) in (first_page..).zip(&mut self.pages[first_page..touched]) {
            let start = index * page_tokens;
            let positions = pos.max(start)..(pos + tokens).min(start + page_tokens);
            let numbered = (positions.start - pos, len.clamp(1, page_tokens));
            let within = positions.start - start..positions.end - start;
            if let Some(bytes) = page.bytes_mut() {
                parts.extend(KvPart::of_page(&shape, bytes, layer, within, numbered));
            }
        }
        Ok(parts)
    }

    /// Counts `tokens` of `layer` as held, the first of them at position `pos`, for a device that writes their keys and
    /// values itself: their pages are this cache's alone now. What the layer held from `pos` on is forgotten.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn claim(&mut self, layer: usize, pos: usize, tokens: usize) -> Result<(), KvError> {
        self.check_room(layer, pos, tokens)?;
        let end = pos + tokens;
        self.own(pos, end)?;
        let first = pos / self.shape().page_tokens;
        let pages = first..self.shape().pages(end).max(first);
        self.pages[pages].iter_mut().for_each(|page| page.restamp(layer));
        self.written[layer] = end;
        Ok(())
    }

    /// The first position from which on all pages are this cache's alone.
    pub fn own_from(&self) -> usize {
        let shared = self.pages.iter().rposition(KvPage::is_shared).map_or(0, |last| last + 1);
        shared * self.shape().page_tokens
    }

    /// Keys and values of one layer.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn layer(&self, layer: usize) -> KvLayer<'_> {
        KvLayer::new(self.shape(), &self.pages, layer, self.written[layer])
    }

    /// Has pages for all positions below `end`, and those of positions from `start` on alone.
    fn own(&mut self, start: usize, end: usize) -> Result<(), KvError> {
        if end > self.capacity {
            return Err(KvError::Full { needed: end, capacity: self.capacity });
        }
        let before = self.pages.len();
        let wanted = self.shape().pages(end);
        while self.pages.len() < wanted {
            let Some(page) = self.pool.take() else {
                let error = self.no_pages(wanted - self.pages.len());
                self.pages.truncate(before);
                return Err(error);
            };
            self.pages.push(page);
        }
        let first = start / self.shape().page_tokens;
        (first..wanted.min(before)).try_for_each(|index| self.part_from_others(index))
    }

    /// Puts a copy in the place of a page that others have too.
    fn part_from_others(&mut self, index: usize) -> Result<(), KvError> {
        if !self.pages[index].is_shared() {
            return Ok(());
        }
        let mut own = self.pool.take().ok_or_else(|| self.no_pages(1))?;
        let page_tokens = self.shape().page_tokens;
        let held = self.written.iter().copied().max().unwrap_or(0);
        let rows = held.saturating_sub(index * page_tokens).min(page_tokens);
        if let Some(bytes) = own.bytes_mut() {
            self.shape().copy_rows(self.pages[index].bytes(), bytes, rows);
        }
        own.restamp_all();
        self.pages[index] = own;
        Ok(())
    }

    fn no_pages(&self, needed: usize) -> KvError {
        KvError::NoPages { needed, free: self.pool.free_pages(), pages: self.pool.pages() }
    }

    /// The number of tokens in a write, if it can be done.
    fn check_write(
        &self,
        layer: usize,
        pos: usize,
        k: &[f32],
        v: &[f32],
    ) -> Result<usize, KvError> {
        let fault = |what, expected: String, found| KvError::Write { what, expected, found };
        let token = self.shape().kv_heads * self.shape().head_dim;
        if !k.len().is_multiple_of(token) {
            return Err(fault("numbers in keys", format!("a multiple of {token}"), k.len()));
        }
        if v.len() != k.len() {
            return Err(fault("numbers in values", k.len().to_string(), v.len()));
        }
        let tokens = k.len() / token;
        self.check_room(layer, pos, tokens)?;
        Ok(tokens)
    }

    /// Whether a layer can hold so many tokens from a position on.
    fn check_room(&self, layer: usize, pos: usize, tokens: usize) -> Result<(), KvError> {
        let fault = |what, expected: String, found| KvError::Write { what, expected, found };
        let held = *self
            .written
            .get(layer)
            .ok_or_else(|| fault("layer", format!("below {}", self.written.len()), layer))?;
        if pos > held {
            return Err(fault("position", format!("at most {held}"), pos));
        }
        let needed = pos.saturating_add(tokens);
        if needed > self.capacity {
            return Err(KvError::Full { needed, capacity: self.capacity });
        }
        Ok(())
    }
}
