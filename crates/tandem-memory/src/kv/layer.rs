//! Reading keys and values.

use std::ops::Range;

use super::{KvData, KvPage, KvPlace, KvShape};

/// Keys and values of one layer of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct KvLayer<'a> {
    shape: &'a KvShape,
    pages: &'a [KvPage],
    layer: usize,
    len: usize,
}

impl<'a> KvLayer<'a> {
    pub(super) fn new(
        shape: &'a KvShape,
        pages: &'a [KvPage],
        layer: usize,
        len: usize,
    ) -> KvLayer<'a> {
        Self { shape, pages, layer, len }
    }

    /// Positions that may be read.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// KV heads.
    pub fn kv_heads(&self) -> usize {
        self.shape.kv_heads
    }

    /// Numbers of one head's key.
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// The positions of a page.
    pub fn page_tokens(&self) -> usize {
        self.shape.page_tokens
    }

    /// Cuts positions where pages end: what lies in one page is one run of memory.
    pub fn runs(
        &self,
        positions: Range<usize>,
    ) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        let page = self.shape.page_tokens;
        let mut start = positions.start;
        std::iter::from_fn(move || {
            let run = start..(start / page * page + page).min(positions.end);
            start = run.end;
            (!run.is_empty()).then_some(run)
        })
    }

    /// Keys of one head at `positions` of one page, as `[position][head_dim]`.
    ///
    /// # Panics
    /// When the head or the positions were not written, or are not of one page.
    pub fn keys(&self, head: usize, positions: Range<usize>) -> KvData<'a> {
        let [keys, _] = self.shape.places(self.layer);
        self.run(keys, head, positions)
    }

    /// Values of one head at `positions` of one page, as `[position][head_dim]`.
    ///
    /// # Panics
    /// When the head or the positions were not written, or are not of one page.
    pub fn values(&self, head: usize, positions: Range<usize>) -> KvData<'a> {
        let [_, values] = self.shape.places(self.layer);
        self.run(values, head, positions)
    }

    /// Some positions of a head.
    fn run(&self, place: KvPlace, head: usize, positions: Range<usize>) -> KvData<'a> {
        let &KvShape { kv_heads, head_dim, kind, page_tokens, .. } = self.shape;
        assert!(head < kv_heads, "KV head {head} of {kv_heads}");
        assert!(positions.end <= self.len, "KV positions {positions:?} of {}", self.len);
        let page = positions.start / page_tokens;
        let within = positions.start - page * page_tokens..positions.end - page * page_tokens;
        assert!(within.end <= page_tokens, "KV positions {positions:?} in pages of {page_tokens}");
        let bytes = self.pages[page].bytes();
        let data = KvData::new(kind, &bytes[place.numbers], &bytes[place.scales]);
        let row = head * page_tokens;
        data.slice((row + within.start) * head_dim..(row + within.end) * head_dim)
    }
}
