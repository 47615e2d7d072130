//! Rotary embedding with the KV cache's write, and attention over the cache's pages.

use tandem_memory::{KvShape, KvType};

use super::LOCAL;
use super::kv::KvPages;
use crate::error::{GpuError, Result};
use crate::gpu::{Gpu, GpuVec, Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

/// A source that begins with how pages are found.
macro_rules! paged {
    ($file:literal) => {
        Source {
            file: $file,
            text: concat!(
                include_str!("../../kernels/kv.cl"),
                include_str!(concat!("../../kernels/", $file))
            ),
        }
    };
}
pub(crate) const ROPE: Source = paged!("rope_kv.cl");
pub(crate) const ATTENTION: Source = paged!("attention.cl");
/// Keys of a span, where an input is short. Fixed, so that results do not depend on the device.
const SPAN: usize = 512;
/// Tokens of an input that is short: others have work-groups enough without cutting the keys.
const SHORT: usize = 8;

/// Heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key/value heads; query head `h` reads KV head `h / (queries / kv)`.
    pub kv: usize,
    /// Numbers of a head.
    pub dim: usize,
}

/// A layer's keys and values, in pages that are lent to a device.
#[derive(Clone, Debug)]
pub struct KvRegion<'scope> {
    heads: Heads,
    pages: KvPages<'scope>,
    /// All pages from this layer's part of the first one on.
    bytes: RegionMut<'scope, u8>,
}

impl<'scope> KvRegion<'scope> {
    /// A layer's keys and values in a sequence's pages.
    ///
    /// # Errors
    /// When there are no kernels for such heads.
    ///
    /// # Panics
    /// When the shapes do not fit together, or there is no such layer.
    pub fn new(
        scope: &Scope<'_, '_>,
        heads: Heads,
        pages: &KvPages<'scope>,
        layer: usize,
    ) -> Result<Self> {
        let Heads { queries, kv, dim } = heads;
        let shape = pages.shape;
        assert!(kv > 0 && queries.is_multiple_of(kv), "{queries} heads, {kv} KV heads");
        assert_eq!((kv, dim), (shape.kv_heads, shape.head_dim), "heads of a KV cache");
        assert!(layer < shape.layers, "layer {layer} of {}", shape.layers);
        if let Some(what) = attention_heads_fault(heads) {
            let device = scope.gpu().device().info().full_name();
            return Err(GpuError::Missing { device, what });
        }
        let bytes = pages.pool.slice_mut(layer * shape.layer_bytes()..pages.pool.len());
        Ok(Self { heads, pages: pages.clone(), bytes })
    }

    /// The part of it that kernels are compiled for.
    fn defines(&self) -> [(&'static str, usize); 5] {
        let KvShape { kind, page_tokens, .. } = self.pages.shape;
        let bits = match kind {
            KvType::F32 => 32,
            KvType::F16 => 16,
            KvType::Q8_0 => 8,
        };
        [
            ("HEAD_DIM", self.heads.dim),
            ("HEADS", self.heads.queries),
            ("KV_HEADS", self.heads.kv),
            ("KV_PAGE", page_tokens),
            ("KV_BITS", bits),
        ]
    }

    /// Rotates queries in place and keys on their way into the cache, and stores values there, for tokens from
    /// position `start` on. `angles` are cosine and sine of every pair, `[token][pair][2]`; `q` is
    /// `[token][head][head_dim]`, `k` and `v` are `[token][kv_head][head_dim]`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the shapes do not fit together, or the tokens do not fit the pages, or others have those too.
    pub fn rope_and_write(
        &self,
        scope: &Scope<'_, '_>,
        angles: &Region<'_, f32>,
        q: &RegionMut<'_, f32>,
        k: &Region<'_, f32>,
        v: &Region<'_, f32>,
        start: usize,
    ) -> Result<()> {
        let Heads { queries, kv, dim } = self.heads;
        let tokens = super::tokens("queries", q.len(), queries * dim);
        assert_eq!((k.len(), v.len()), (tokens * kv * dim, tokens * kv * dim), "keys and values");
        assert_eq!(angles.len(), tokens * dim, "cosines and sines");
        self.pages.check_writable(start, tokens);
        let items = tokens * (queries * (dim / 2) + 2 * kv * (dim / 4));
        let defines = self.defines();
        let global = [items.next_multiple_of(GROUP), 1, 1];
        let work = Work { source: ROPE, name: "rope_kv", defines: &defines, global, local: LOCAL };
        // SAFETY: a work-item has a pair of a query or four numbers of a key or value of a token, all of which have been
        // checked to be there; it writes to a page that has been checked to be the cache's alone.
        unsafe {
            scope.launch(
                work,
                &[
                    q.into(),
                    k.into(),
                    v.into(),
                    angles.into(),
                    (&self.bytes).into(),
                    (&self.pages.table).into(),
                    tokens.into(),
                    start.into(),
                    self.pages.shape.page_bytes().into(),
                ],
            )
        }
    }

    /// `out = softmax(q k / sqrt(head_dim)) v` for every query head of every token, `q` and `out` being
    /// `[token][head][head_dim]`. The first token is at `start`; the query at position `i` sees the key at `j` where
    /// `j <= i` and, with a window, `j > i - window`. The cache holds the sequence up to these tokens.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the shapes do not fit together, the window is 0, or there are more tokens than there are pages or `spans` has
    /// room for.
    pub fn attention(
        &self,
        scope: &Scope<'_, '_>,
        q: &Region<'_, f32>,
        start: usize,
        window: Option<usize>,
        spans: &RegionMut<'_, f32>,
        out: &RegionMut<'_, f32>,
    ) -> Result<()> {
        let Heads { queries, dim, .. } = self.heads;
        let tokens = super::tokens("attention queries", q.len(), queries * dim);
        assert_eq!(out.len(), q.len(), "attention output");
        let room = self.pages.room();
        assert!(start + tokens <= room, "attention of {tokens} tokens from {start} over {room}");
        assert!(window != Some(0), "attention window of 0");
        let keys = start + tokens;
        let span = if tokens <= SHORT { SPAN } else { keys };
        let count = keys.div_ceil(span.max(1));
        let parts = span_numbers(self.heads, tokens, count);
        assert!(spans.len() >= parts, "room for {parts} numbers of {count} spans");
        let (defines, source) = (self.defines(), ATTENTION);
        let global = [queries * GROUP, tokens, count];
        let work = Work { source, name: "attention", defines: &defines, global, local: LOCAL };
        // SAFETY: a group has a query of `q` and `out`, and a span's place among the parts; keys end before
        // `start + tokens`, which there are pages for.
        unsafe {
            scope.launch(
                work,
                &[
                    q.into(),
                    (&self.bytes).into(),
                    (&self.pages.table).into(),
                    start.into(),
                    self.pages.shape.page_bytes().into(),
                    window.unwrap_or(0).into(),
                    span.into(),
                    out.into(),
                    spans.into(),
                ],
            )?;
        }
        if count <= 1 {
            return Ok(());
        }
        let global = [queries * GROUP, tokens, 1];
        let work = Work { source, name: "attention_join", defines: &defines, global, local: LOCAL };
        // SAFETY: as above.
        unsafe { scope.launch(work, &[spans.into(), count.into(), out.into()]) }
    }
}

/// Why there are no kernels for such heads; none where there are.
pub fn attention_heads_fault(heads: Heads) -> Option<String> {
    let dim = heads.dim;
    let fits = dim > 0 && dim.is_multiple_of(4) && dim <= GROUP;
    (!fits).then(|| format!("attention for heads of {dim}: expected a multiple of 4 up to {GROUP}"))
}

/// Room for what attention computes of each span of keys, enough for every input over a cache of `capacity` positions.
///
/// # Errors
/// When the memory cannot be had.
pub fn attention_spans(gpu: &Gpu, heads: Heads, capacity: usize) -> Result<GpuVec<f32>> {
    gpu.zeros(span_numbers(heads, SHORT, capacity.div_ceil(SPAN)).max(1))
}

/// A query's part of a span is its weighted sum, the largest score and the sum of weights; one span needs none.
fn span_numbers(heads: Heads, tokens: usize, spans: usize) -> usize {
    if spans <= 1 { 0 } else { tokens * heads.queries * spans * (heads.dim + 2) }
}
