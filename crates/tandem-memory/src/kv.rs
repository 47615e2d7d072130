//! The KV cache: keys and values of one sequence, for every layer.
//!
//! Within a layer, keys lie as `[kv_head][position][head_dim]`, and so do values. Attention of one head then
//! reads one unbroken run of memory, however the heads are shared out to threads and devices.
//!
//! Each layer counts its own positions, and the cache is as long as its shortest layer. A forward pass that
//! stops halfway therefore leaves no half-written token: [`KvCache::len`] has not moved, and the next write
//! overwrites what the stopped one left.

use crate::aligned::{AlignedBuffer, AllocError, Allocator, SystemMemory};
use half::f16;
use half::slice::HalfFloatSliceExt;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// IEEE 754 binary16: half the memory traffic; values beyond 65504 become infinite.
    F16,
    /// IEEE 754 binary32: what the exact path computes with.
    F32,
}

impl KvType {
    /// Bytes of one number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Why the cache could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// A dimension is zero, or the cache's size overflows.
    #[error(
        "KV cache of {layers} layers x {kv_heads} KV heads x {capacity} tokens x {head_dim}: \
         every dimension must be at least 1 and their product addressable"
    )]
    Shape {
        /// Layers.
        layers: usize,
        /// KV heads of a layer.
        kv_heads: usize,
        /// Numbers of one head's key.
        head_dim: usize,
        /// Tokens.
        capacity: usize,
    },
    /// The memory could not be had.
    #[error("KV cache: {0}")]
    Alloc(#[from] AllocError),
    /// The tokens do not fit.
    #[error("KV cache is full: {needed} tokens needed, room for {capacity}")]
    Full {
        /// Tokens that the sequence would have.
        needed: usize,
        /// Tokens that the cache has room for.
        capacity: usize,
    },
    /// A write that would leave a hole, or is of the wrong size.
    #[error("KV cache: {what}: expected {expected}, found {found}")]
    Write {
        /// What was wrong.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What came.
        found: usize,
    },
}

/// Keys and values of one sequence, for every layer.
#[derive(Debug)]
pub struct KvCache {
    buffer: AlignedBuffer,
    kind: KvType,
    /// Positions written so far, for each layer.
    written: Vec<usize>,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens. Memory is committed only as positions are written.
    ///
    /// # Errors
    /// When a dimension is zero, the size overflows, or the memory cannot be had.
    pub fn new(
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
        kind: KvType,
    ) -> Result<Self, KvError> {
        Self::new_in(&SystemMemory, layers, kv_heads, head_dim, capacity, kind)
    }

    /// As [`Self::new`], in memory from `allocator`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn new_in(
        allocator: &dyn Allocator,
        layers: usize,
        kv_heads: usize,
        head_dim: usize,
        capacity: usize,
        kind: KvType,
    ) -> Result<Self, KvError> {
        let bytes = [2, kind.bytes(), kv_heads, head_dim, capacity]
            .into_iter()
            .try_fold(layers, usize::checked_mul)
            .filter(|&bytes| bytes > 0)
            .ok_or(KvError::Shape { layers, kv_heads, head_dim, capacity })?;
        let buffer = allocator.zeroed(bytes)?;
        Ok(Self { buffer, kind, written: vec![0; layers], kv_heads, head_dim, capacity })
    }

    /// Tokens that every layer holds.
    pub fn len(&self) -> usize {
        self.written.iter().copied().min().unwrap_or(0)
    }

    /// Whether no token is held by every layer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that the cache has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.written.len()
    }

    /// How keys and values are stored.
    pub fn kind(&self) -> KvType {
        self.kind
    }

    /// Bytes of the cache when full.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes that one token takes, over all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.buffer.len() / self.capacity
    }

    /// Forgets every position from `len` on; does nothing where the cache is shorter.
    pub fn truncate(&mut self, len: usize) {
        for written in &mut self.written {
            *written = len.min(*written);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Stores the keys and values (`[token][kv_head][head_dim]`) of one or more tokens of `layer`, the first of
    /// them at position `pos`. What the layer held from `pos` on is forgotten.
    ///
    /// # Errors
    /// When the tokens do not fit, `pos` would leave a hole, or the slices are not of whole tokens. The cache is
    /// then unchanged.
    pub fn write(&mut self, layer: usize, pos: usize, k: &[f32], v: &[f32]) -> Result<(), KvError> {
        let tokens = self.check_write(layer, pos, k, v)?;
        let (heads, dim, half) = (self.kv_heads, self.head_dim, self.layer_len() / 2);
        let start = layer * self.layer_len();
        for (source, region) in [(k, start), (v, start + half)] {
            for token in 0..tokens {
                for head in 0..heads {
                    let from = &source[(token * heads + head) * dim..][..dim];
                    let to = region + (head * self.capacity + pos + token) * dim;
                    match self.kind {
                        KvType::F32 => {
                            self.buffer.typed_mut::<f32>()[to..][..dim].copy_from_slice(from);
                        }
                        KvType::F16 => {
                            self.buffer.typed_mut::<f16>()[to..][..dim]
                                .convert_from_f32_slice(from);
                        }
                    }
                }
            }
        }
        self.written[layer] = pos + tokens;
        Ok(())
    }

    /// Keys and values of one layer.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn layer(&self, layer: usize) -> KvLayer<'_> {
        let len = self.written[layer];
        let range = layer * self.layer_len()..(layer + 1) * self.layer_len();
        let (keys, values) = match self.kind {
            KvType::F32 => {
                let (k, v) = split(&self.buffer.typed()[range]);
                (KvData::F32(k), KvData::F32(v))
            }
            KvType::F16 => {
                let (k, v) = split(&self.buffer.typed()[range]);
                (KvData::F16(k), KvData::F16(v))
            }
        };
        let (kv_heads, head_dim, stride) = (self.kv_heads, self.head_dim, self.capacity);
        KvLayer { keys, values, kv_heads, head_dim, stride, len }
    }

    /// Numbers of one layer: its keys, then as many values.
    fn layer_len(&self) -> usize {
        2 * self.kv_heads * self.capacity * self.head_dim
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
        let token = self.kv_heads * self.head_dim;
        let held = *self
            .written
            .get(layer)
            .ok_or_else(|| fault("layer", format!("below {}", self.written.len()), layer))?;
        if pos > held {
            return Err(fault("position", format!("at most {held}"), pos));
        }
        if !k.len().is_multiple_of(token) {
            return Err(fault("numbers in keys", format!("a multiple of {token}"), k.len()));
        }
        if v.len() != k.len() {
            return Err(fault("numbers in values", k.len().to_string(), v.len()));
        }
        let tokens = k.len() / token;
        if tokens > self.capacity - pos {
            return Err(KvError::Full {
                needed: pos.saturating_add(tokens),
                capacity: self.capacity,
            });
        }
        Ok(tokens)
    }
}

/// A layer's keys and its values.
fn split<T>(layer: &[T]) -> (&[T], &[T]) {
    layer.split_at(layer.len() / 2)
}

/// Stored numbers of either type.
#[derive(Clone, Copy, Debug)]
pub enum KvData<'a> {
    /// Stored as f16.
    F16(&'a [f16]),
    /// Stored as f32.
    F32(&'a [f32]),
}

impl<'a> KvData<'a> {
    /// A part of it.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn slice(self, range: std::ops::Range<usize>) -> KvData<'a> {
        match self {
            Self::F16(data) => KvData::F16(&data[range]),
            Self::F32(data) => KvData::F32(&data[range]),
        }
    }

    /// How many numbers there are.
    pub fn len(self) -> usize {
        match self {
            Self::F16(data) => data.len(),
            Self::F32(data) => data.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Keys and values of one layer of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct KvLayer<'a> {
    keys: KvData<'a>,
    values: KvData<'a>,
    kv_heads: usize,
    head_dim: usize,
    /// Positions from one head to the next.
    stride: usize,
    len: usize,
}

impl<'a> KvLayer<'a> {
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
        self.kv_heads
    }

    /// Numbers of one head's key.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Keys of one head at `positions`, as `[position][head_dim]`.
    ///
    /// # Panics
    /// When the head or the positions were not written.
    pub fn keys(&self, head: usize, positions: std::ops::Range<usize>) -> KvData<'a> {
        self.keys.slice(self.span(head, positions))
    }

    /// Values of one head at `positions`, as `[position][head_dim]`.
    ///
    /// # Panics
    /// When the head or the positions were not written.
    pub fn values(&self, head: usize, positions: std::ops::Range<usize>) -> KvData<'a> {
        self.values.slice(self.span(head, positions))
    }

    /// Where the positions of a head lie within the layer's keys, and within its values.
    fn span(&self, head: usize, positions: std::ops::Range<usize>) -> std::ops::Range<usize> {
        assert!(head < self.kv_heads, "KV head {head} of {}", self.kv_heads);
        assert!(positions.end <= self.len, "KV positions {positions:?} of {}", self.len);
        let row = head * self.stride;
        (row + positions.start) * self.head_dim..(row + positions.end) * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 101) % 251) as f32 - 125.0).collect()
    }

    fn to_f32(data: KvData<'_>) -> Vec<f32> {
        match data {
            KvData::F16(d) => d.iter().map(|x| x.to_f32()).collect(),
            KvData::F32(d) => d.to_vec(),
        }
    }

    #[test]
    fn holds_what_was_written_per_head() {
        for kind in [KvType::F16, KvType::F32] {
            let (layers, heads, dim) = (2, 3, 4);
            let mut cache = KvCache::new(layers, heads, dim, 5, kind).unwrap();
            assert_eq!(cache.bytes(), 2 * kind.bytes() * layers * heads * dim * 5);
            assert_eq!(cache.bytes_per_token() * 5, cache.bytes());
            let token = heads * dim;
            let data: Vec<_> =
                (0..layers).map(|l| (numbers(5 * token, l), numbers(5 * token, l + 9))).collect();
            for (pos, n) in [(0, 2), (2, 1), (3, 2)] {
                for (layer, (k, v)) in data.iter().enumerate() {
                    let range = pos * token..(pos + n) * token;
                    cache.write(layer, pos, &k[range.clone()], &v[range]).unwrap();
                }
                assert_eq!(cache.len(), pos + n);
            }
            for (layer, (k, v)) in data.iter().enumerate() {
                let view = cache.layer(layer);
                for head in 0..heads {
                    let pick = |all: &[f32]| -> Vec<f32> {
                        (1..5)
                            .flat_map(|p| all[(p * heads + head) * dim..][..dim].to_vec())
                            .collect()
                    };
                    assert_eq!(to_f32(view.keys(head, 1..5)), pick(k));
                    assert_eq!(to_f32(view.values(head, 1..5)), pick(v));
                }
            }
        }
    }

    #[test]
    fn rounds_to_nearest_even_f16() {
        let mut cache = KvCache::new(1, 1, 4, 1, KvType::F16).unwrap();
        let ulp = 2f32.powi(-10);
        let k = [1.0 + ulp / 2.0, 1.0 + 1.5 * ulp, 65504.0, 1e6];
        cache.write(0, 0, &k, &k).unwrap();
        let expected = [1.0, 1.0 + 2.0 * ulp, 65504.0, f32::INFINITY];
        assert_eq!(to_f32(cache.layer(0).keys(0, 0..1)), expected);
    }

    #[test]
    fn a_stopped_pass_leaves_the_length_alone() {
        let mut cache = KvCache::new(2, 1, 2, 4, KvType::F32).unwrap();
        cache.write(0, 0, &[1.0; 4], &[1.0; 4]).unwrap();
        assert_eq!((cache.len(), cache.layer(0).len()), (0, 2));
        cache.write(0, 0, &[2.0; 2], &[2.0; 2]).unwrap();
        cache.write(1, 0, &[2.0; 2], &[2.0; 2]).unwrap();
        assert_eq!((cache.len(), cache.layer(0).len()), (1, 1));
    }

    #[test]
    fn truncates_and_clears() {
        let mut cache = KvCache::new(1, 1, 1, 8, KvType::F32).unwrap();
        cache.write(0, 0, &[0.0, 1.0, 2.0, 3.0], &[0.0; 4]).unwrap();
        cache.truncate(6);
        assert_eq!(cache.len(), 4);
        cache.truncate(2);
        assert_eq!(cache.len(), 2);
        cache.write(0, 2, &[9.0], &[0.0]).unwrap();
        assert_eq!(to_f32(cache.layer(0).keys(0, 0..3)), [0.0, 1.0, 9.0]);
        cache.clear();
        assert!(cache.is_empty());
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut cache = KvCache::new(1, 1, 2, 2, KvType::F32).unwrap();
        let mut fails = |layer, pos, k: &[f32], v: &[f32]| {
            cache.write(layer, pos, k, v).unwrap_err().to_string()
        };
        assert_eq!(fails(1, 0, &[], &[]), "KV cache: layer: expected below 1, found 1");
        assert_eq!(fails(0, 1, &[], &[]), "KV cache: position: expected at most 0, found 1");
        let message = fails(0, 0, &[0.0; 3], &[0.0; 3]);
        assert_eq!(message, "KV cache: numbers in keys: expected a multiple of 2, found 3");
        let message = fails(0, 0, &[0.0; 2], &[0.0; 4]);
        assert_eq!(message, "KV cache: numbers in values: expected 2, found 4");
        let message = fails(0, 0, &[0.0; 6], &[0.0; 6]);
        assert_eq!(message, "KV cache is full: 3 tokens needed, room for 2");
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn refuses_impossible_shapes() {
        assert!(matches!(KvCache::new(0, 1, 1, 1, KvType::F16), Err(KvError::Shape { .. })));
        let huge = KvCache::new(1 << 20, 1 << 20, 1 << 20, 1 << 20, KvType::F16);
        assert!(matches!(huge, Err(KvError::Shape { .. })));
        let refused = KvCache::new(1, 1, 1, 1 << 58, KvType::F32);
        assert!(matches!(refused, Err(KvError::Alloc(_))));
    }

    #[test]
    #[should_panic(expected = "KV positions 0..1 of 0")]
    fn unwritten_positions_cannot_be_read() {
        KvCache::new(1, 1, 1, 1, KvType::F32).unwrap().layer(0).keys(0, 0..1);
    }
}
