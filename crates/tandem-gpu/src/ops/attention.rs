//! Rotary embedding with the KV cache's write, and attention over the cache.

use half::f16;
use tandem_memory::KvType;

use super::LOCAL;
use crate::error::{GpuError, Result};
use crate::gpu::{Gpu, GpuVec, Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

pub(crate) const ROPE: Source =
    Source { file: "rope_kv.cl", text: include_str!("../../kernels/rope_kv.cl") };
pub(crate) const ATTENTION: Source =
    Source { file: "attention.cl", text: include_str!("../../kernels/attention.cl") };
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

/// Keys and values of a layer, each `[kv_head][position][head_dim]`, that are lent to a device.
#[derive(Clone, Debug)]
pub struct KvRegion<'scope> {
    heads: Heads,
    kind: KvType,
    number_bytes: usize,
    keys: RegionMut<'scope, u8>,
    values: RegionMut<'scope, u8>,
}

impl<'scope> KvRegion<'scope> {
    /// A layer's keys and values over their bytes.
    ///
    /// # Errors
    /// When there are no kernels for such heads, or for caches of that type.
    ///
    /// # Panics
    /// When the shapes do not fit together.
    pub fn new(
        scope: &Scope<'_, '_>,
        heads: Heads,
        kind: KvType,
        keys: RegionMut<'scope, u8>,
        values: RegionMut<'scope, u8>,
    ) -> Result<Self> {
        let Heads { queries, kv, dim } = heads;
        assert!(kv > 0 && queries.is_multiple_of(kv), "{queries} heads, {kv} KV heads");
        let missing =
            |what| Err(GpuError::Missing { device: scope.gpu().device().info().full_name(), what });
        if let Some(fault) = attention_heads_fault(heads) {
            return missing(fault);
        }
        let number_bytes = match kind {
            KvType::F16 => size_of::<f16>(),
            KvType::F32 => size_of::<f32>(),
            KvType::Q8_0 => {
                return missing(
                    "attention over a KV cache in q8_0: expected f16 or f32".to_owned(),
                );
            }
        };
        super::tokens("KV cache", keys.len(), kv * dim * number_bytes);
        assert_eq!(keys.len(), values.len(), "bytes of keys and values");
        Ok(Self { heads, kind, number_bytes, keys, values })
    }

    /// Positions that there is room for.
    pub fn capacity(&self) -> usize {
        self.keys.len() / (self.heads.kv * self.heads.dim * self.number_bytes)
    }

    /// The part of it that kernels are compiled for.
    fn defines(&self) -> [(&'static str, usize); 4] {
        [
            ("HEAD_DIM", self.heads.dim),
            ("HEADS", self.heads.queries),
            ("KV_HEADS", self.heads.kv),
            ("KV_F16", usize::from(self.kind == KvType::F16)),
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
    /// When the shapes do not fit together, or the tokens do not fit the cache.
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
        assert!(start + tokens <= self.capacity(), "{tokens} tokens from {start}");
        let items = tokens * (queries + 2 * kv) * (dim / 2);
        let defines = self.defines();
        let global = [items.next_multiple_of(GROUP), 1, 1];
        let work = Work { source: ROPE, name: "rope_kv", defines: &defines, global, local: LOCAL };
        // SAFETY: a work-item has one pair of a head of a token, all of which have been checked to be there.
        unsafe {
            scope.launch(
                work,
                &[
                    q.into(),
                    k.into(),
                    v.into(),
                    angles.into(),
                    (&self.keys).into(),
                    (&self.values).into(),
                    tokens.into(),
                    start.into(),
                    self.capacity().into(),
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
    /// When the shapes do not fit together, the window is 0, or there are more tokens than the cache or `spans` has
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
        assert!(start + tokens <= self.capacity(), "attention of {tokens} tokens from {start}");
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
        // `start + tokens`, which the cache has.
        unsafe {
            scope.launch(
                work,
                &[
                    q.into(),
                    (&self.keys).into(),
                    (&self.values).into(),
                    start.into(),
                    self.capacity().into(),
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
