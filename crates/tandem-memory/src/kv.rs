//! The KV cache: keys and values of one sequence, for every layer.
//!
//! Within a layer, keys lie as `[kv_head][position][head_dim]`, and so do values. Attention of one head then
//! reads one unbroken run of memory, however the heads are shared out to threads and devices. In 8 bits the scales of
//! all keys follow the quants of all keys, as `[kv_head][position][head_dim / 32]`, and so for values: quants stay
//! aligned, and a device reads each of the two as one array.
//!
//! Each layer counts its own positions, and the cache is as long as its shortest layer. A forward pass that
//! stops halfway therefore leaves no half-written token: [`KvCache::len`] has not moved, and the next write
//! overwrites what the stopped one left.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::aligned::{AlignedBuffer, AllocError, Allocator, SystemMemory};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use tandem_formats::{DType, blocks};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// IEEE 754 binary16: half the memory traffic; values beyond 65504 become infinite.
    F16,
    /// IEEE 754 binary32: what the exact path computes with.
    F32,
    /// 8 bits, with an f16 scale for each [`KV_BLOCK`] numbers of a head: a bit more than half of f16. `head_dim` must be
    /// a multiple of [`KV_BLOCK`]. A block with a number that is not finite becomes NaN as a whole.
    Q8_0,
}

/// Numbers that share a scale in [`KvType::Q8_0`].
pub const KV_BLOCK: usize = 32;

impl KvType {
    /// Bytes of `count` numbers with their scales. The count is of whole blocks.
    pub const fn bytes(self, count: usize) -> usize {
        let [numbers, scales] = self.bytes_of(count);
        numbers + scales
    }

    /// Bytes of `count` numbers and of their scales. The count is of whole blocks.
    const fn bytes_of(self, count: usize) -> [usize; 2] {
        match self {
            Self::F16 => [2 * count, 0],
            Self::F32 => [4 * count, 0],
            Self::Q8_0 => [count, count / KV_BLOCK * size_of::<f16>()],
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
    /// Heads are not of whole blocks.
    #[error(
        "KV cache in q8_0: head_dim: expected a multiple of {KV_BLOCK}, found {0}: this model needs an f16 or f32 cache"
    )]
    Blocks(
        /// Numbers of one head's key.
        usize,
    ),
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
    /// For each layer a number that no other state of any cache has.
    stamps: Vec<u64>,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens. Memory is committed only as positions are written.
    ///
    /// # Errors
    /// When a dimension is zero, the size overflows, heads are not of the type's whole blocks, or the memory cannot be
    /// had.
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
        if kind == KvType::Q8_0 && !head_dim.is_multiple_of(KV_BLOCK) {
            return Err(KvError::Blocks(head_dim));
        }
        // 4 bytes are the most that a number takes, whatever the type.
        let numbers = [2, kv_heads, head_dim, capacity]
            .into_iter()
            .try_fold(layers, usize::checked_mul)
            .filter(|&numbers| numbers > 0 && numbers.checked_mul(4).is_some())
            .ok_or(KvError::Shape { layers, kv_heads, head_dim, capacity })?;
        let buffer = allocator.zeroed(kind.bytes(numbers))?;
        let written = vec![0; layers];
        let stamps = (0..layers).map(|_| new_stamp()).collect();
        Ok(Self { buffer, kind, written, stamps, kv_heads, head_dim, capacity })
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
        let (heads, dim) = (self.kv_heads, self.head_dim);
        for mut part in self.parts(layer, pos, k, v, usize::MAX)? {
            let head = part.head();
            for token in part.tokens() {
                let row = (token * heads + head) * dim..(token * heads + head + 1) * dim;
                part.write(token, &k[row.clone()], &v[row]);
            }
        }
        Ok(())
    }

    /// The places of what [`Self::write`] would store, for several threads to fill: one part for every KV head and
    /// every `len` tokens. The layer counts the tokens as held from now on, so all of them must be filled.
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
        self.stamps[layer] = new_stamp();
        let len = len.clamp(1, tokens.max(1));
        let (half, row) = (self.half(), self.kind.bytes_of(self.head_dim));
        let mut rest = &mut self.buffer[2 * layer * half.iter().sum::<usize>()..];
        let mut places = [(); 2].map(|()| Places {
            numbers: rest.split_off_mut(..half[0]).unwrap_or_default(),
            scales: rest.split_off_mut(..half[1]).unwrap_or_default(),
        });
        let mut parts = Vec::with_capacity(self.kv_heads * tokens.div_ceil(len));
        for head in 0..self.kv_heads {
            let mut take = |rows| places.each_mut().map(|places| places.take(row, rows));
            take(pos);
            for start in (0..tokens).step_by(len) {
                let tokens = start..tokens.min(start + len);
                let [keys, values] = take(tokens.len());
                parts.push(KvPart { kind: self.kind, row, head, tokens, keys, values });
            }
            take(self.capacity - pos - tokens);
        }
        self.written[layer] = pos + tokens;
        Ok(parts)
    }

    /// Counts `tokens` of `layer` as held, the first of them at position `pos`, for a device that writes their keys and
    /// values into [`Self::bytes_mut`] itself. What the layer held from `pos` on is forgotten.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn claim(&mut self, layer: usize, pos: usize, tokens: usize) -> Result<(), KvError> {
        self.check_room(layer, pos, tokens)?;
        self.written[layer] = pos + tokens;
        self.stamps[layer] = new_stamp();
        Ok(())
    }

    /// What tells a layer's contents from what they were before any [`write`](Self::write) or [`claim`](Self::claim), and
    /// from those of other caches: for whoever keeps a copy.
    pub fn stamp(&self, layer: usize) -> u64 {
        self.stamps[layer]
    }

    /// KV heads of a layer.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Bytes of one head's key, or of its value, without scales.
    pub fn row_bytes(&self) -> usize {
        self.kind.bytes_of(self.head_dim)[0]
    }

    /// Keys and values of all layers, for a device that uses them in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Where in [`Self::bytes_mut`] a layer's keys and its values are, `[kv_head][position][head_dim]`, without scales.
    pub fn places(&self, layer: usize) -> [Range<usize>; 2] {
        let [numbers, scales] = self.half();
        [2 * layer, 2 * layer + 1].map(|half| {
            let start = half * (numbers + scales);
            start..start + numbers
        })
    }

    /// Keys and values of one layer.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn layer(&self, layer: usize) -> KvLayer<'_> {
        let len = self.written[layer];
        let half = self.half();
        let mut rest = &self.buffer[2 * layer * half.iter().sum::<usize>()..];
        let [keys, values] = [(); 2].map(|()| {
            let [numbers, scales] = half.map(|bytes| rest.split_off(..bytes).unwrap_or_default());
            KvData::new(self.kind, numbers, scales)
        });
        let (kv_heads, head_dim, stride) = (self.kv_heads, self.head_dim, self.capacity);
        KvLayer { keys, values, kv_heads, head_dim, stride, len }
    }

    /// Bytes of a layer's keys, or of its values: the numbers, then their scales.
    fn half(&self) -> [usize; 2] {
        self.kind.bytes_of(self.kv_heads * self.capacity * self.head_dim)
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
        if tokens > self.capacity - pos {
            return Err(KvError::Full {
                needed: pos.saturating_add(tokens),
                capacity: self.capacity,
            });
        }
        Ok(())
    }
}

/// A number that was not used before in this process.
fn new_stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Room for keys, or for values.
#[derive(Debug)]
struct Places<'a> {
    numbers: &'a mut [u8],
    scales: &'a mut [u8],
}

impl<'a> Places<'a> {
    /// Takes the next rows, of so many bytes of numbers and of scales each.
    fn take(&mut self, row: [usize; 2], rows: usize) -> Self {
        Self {
            numbers: self.numbers.split_off_mut(..row[0] * rows).unwrap_or_default(),
            scales: self.scales.split_off_mut(..row[1] * rows).unwrap_or_default(),
        }
    }

    /// Stores one row.
    fn write(&mut self, kind: KvType, row: [usize; 2], index: usize, from: &[f32]) {
        let numbers = &mut self.numbers[index * row[0]..][..row[0]];
        match kind {
            KvType::F32 => bytemuck::cast_slice_mut(numbers).copy_from_slice(from),
            KvType::F16 => halves_mut(numbers).convert_from_f32_slice(from),
            KvType::Q8_0 => {
                let scales = halves_mut(&mut self.scales[index * row[1]..][..row[1]]);
                let quants = numbers.as_chunks_mut().0.iter_mut();
                for ((from, quants), scale) in from.as_chunks().0.iter().zip(quants).zip(scales) {
                    *scale = quantize(from, quants);
                }
            }
        }
    }
}

/// The quants of a block, and its scale: GGML's Q8_0, and NaN for a block with a number that is not finite.
fn quantize(numbers: &[f32; KV_BLOCK], quants: &mut [u8; KV_BLOCK]) -> f16 {
    const SCALE: usize = size_of::<f16>();
    let mut block = [0; SCALE + KV_BLOCK];
    let finite = numbers.iter().all(|x| x.is_finite());
    if !finite || blocks::quantize(DType::Q8_0, numbers, &mut block).is_err() {
        return f16::NAN;
    }
    quants.copy_from_slice(&block[SCALE..]);
    f16::from_le_bytes([block[0], block[1]])
}

fn halves_mut(bytes: &mut [u8]) -> &mut [f16] {
    bytemuck::cast_slice_mut::<u8, u16>(bytes).reinterpret_cast_mut()
}

/// The places of some tokens' keys and values of one KV head.
#[derive(Debug)]
pub struct KvPart<'a> {
    kind: KvType,
    /// Bytes of a row of numbers, and of its scales.
    row: [usize; 2],
    head: usize,
    tokens: Range<usize>,
    keys: Places<'a>,
    values: Places<'a>,
}

impl KvPart<'_> {
    /// The KV head.
    pub fn head(&self) -> usize {
        self.head
    }

    /// The tokens, counted from the first that is written.
    pub fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// Stores the key and the value of one of the tokens.
    ///
    /// # Panics
    /// When it is none of these tokens, or key or value is not of `head_dim` numbers.
    pub fn write(&mut self, token: usize, k: &[f32], v: &[f32]) {
        assert!(self.tokens.contains(&token), "token {token} of {:?}", self.tokens);
        let index = token - self.tokens.start;
        for (places, from) in [(&mut self.keys, k), (&mut self.values, v)] {
            assert_eq!(self.kind.bytes_of(from.len()), self.row, "bytes of a key or value");
            places.write(self.kind, self.row, index, from);
        }
    }
}

/// Stored numbers of any type.
#[derive(Clone, Copy, Debug)]
pub enum KvData<'a> {
    /// Stored as f16.
    F16(&'a [f16]),
    /// Stored as f32.
    F32(&'a [f32]),
    /// Stored in 8 bits.
    Q8_0 {
        /// What is multiplied with a scale.
        quants: &'a [i8],
        /// One for every [`KV_BLOCK`] quants.
        scales: &'a [f16],
    },
}

impl<'a> KvData<'a> {
    fn new(kind: KvType, numbers: &'a [u8], scales: &'a [u8]) -> Self {
        let halves = |bytes| bytemuck::cast_slice::<u8, u16>(bytes).reinterpret_cast();
        match kind {
            KvType::F32 => Self::F32(bytemuck::cast_slice(numbers)),
            KvType::F16 => Self::F16(halves(numbers)),
            KvType::Q8_0 => {
                Self::Q8_0 { quants: bytemuck::cast_slice(numbers), scales: halves(scales) }
            }
        }
    }

    /// A part of it; in 8 bits, of whole blocks.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F16(data) => Self::F16(&data[range]),
            Self::F32(data) => Self::F32(&data[range]),
            Self::Q8_0 { quants, scales } => Self::Q8_0 {
                scales: &scales[range.start / KV_BLOCK..range.end / KV_BLOCK],
                quants: &quants[range],
            },
        }
    }

    /// How many numbers there are.
    pub fn len(self) -> usize {
        match self {
            Self::F16(data) => data.len(),
            Self::F32(data) => data.len(),
            Self::Q8_0 { quants, .. } => quants.len(),
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
    pub fn keys(&self, head: usize, positions: Range<usize>) -> KvData<'a> {
        self.keys.slice(self.span(head, positions))
    }

    /// Values of one head at `positions`, as `[position][head_dim]`.
    ///
    /// # Panics
    /// When the head or the positions were not written.
    pub fn values(&self, head: usize, positions: Range<usize>) -> KvData<'a> {
        self.values.slice(self.span(head, positions))
    }

    /// Where the positions of a head lie within the layer's keys, and within its values.
    fn span(&self, head: usize, positions: Range<usize>) -> Range<usize> {
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
            KvData::Q8_0 { quants, scales } => quants
                .iter()
                .enumerate()
                .map(|(i, &q)| f32::from(q) * scales[i / KV_BLOCK].to_f32())
                .collect(),
        }
    }

    #[test]
    fn holds_what_was_written_per_head() {
        for (kind, dim, bytes_per_head) in
            [(KvType::F16, 4, 8), (KvType::F32, 4, 16), (KvType::Q8_0, 64, 68)]
        {
            let (layers, heads) = (2, 3);
            let mut cache = KvCache::new(layers, heads, dim, 5, kind).unwrap();
            assert_eq!(cache.bytes_per_token(), 2 * layers * heads * bytes_per_head);
            assert_eq!(cache.bytes_per_token() * 5, cache.bytes());
            let token = heads * dim;
            // Whole numbers with a largest of 127 in every block are exact in every type.
            let exact = |seed| {
                let mut numbers = numbers(5 * token, seed);
                numbers.iter_mut().step_by(KV_BLOCK.min(dim)).for_each(|x| *x = 127.0);
                numbers
            };
            let data: Vec<_> = (0..layers).map(|l| (exact(l), exact(l + 9))).collect();
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
    fn eight_bits_keep_numbers_to_half_a_step() {
        let mut cache = KvCache::new(1, 1, 96, 1, KvType::Q8_0).unwrap();
        for scale in [1e-3, 1.0, 1e5] {
            let x: Vec<f32> = numbers(96, 3).iter().map(|x| x * scale / 7.0).collect();
            cache.write(0, 0, &x, &x).unwrap();
            let layer = cache.layer(0);
            for data in [layer.keys(0, 0..1), layer.values(0, 0..1)] {
                for (x, stored) in x.chunks(KV_BLOCK).zip(to_f32(data).chunks(KV_BLOCK)) {
                    let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                    // Half a step, and the scale's rounding to 11 bits.
                    let bound = largest * (0.5 / 127.0 + 2f32.powi(-11)) * 1.001;
                    for (x, stored) in x.iter().zip(stored) {
                        assert!((x - stored).abs() <= bound, "{x} became {stored}");
                    }
                }
            }
        }
    }

    #[test]
    fn eight_bits_do_not_hide_what_is_not_finite() {
        let mut cache = KvCache::new(1, 1, 64, 1, KvType::Q8_0).unwrap();
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = numbers(64, 5);
            x[40] = special;
            cache.write(0, 0, &x, &x).unwrap();
            let stored = to_f32(cache.layer(0).keys(0, 0..1));
            assert!(stored[..32].iter().all(|x| x.is_finite()));
            assert!(stored[32..].iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn parts_cover_every_head_and_token_once() {
        let (heads, dim, pos, tokens) = (3, 2, 1, 5);
        let (k, v) = (numbers(tokens * heads * dim, 1), numbers(tokens * heads * dim, 2));
        let mut whole = KvCache::new(2, heads, dim, 8, KvType::F32).unwrap();
        whole.write(1, 0, &[0.0; 6], &[0.0; 6]).unwrap();
        whole.write(1, pos, &k, &v).unwrap();
        let mut cache = KvCache::new(2, heads, dim, 8, KvType::F32).unwrap();
        cache.write(1, 0, &[0.0; 6], &[0.0; 6]).unwrap();
        let parts = cache.parts(1, pos, &k, &v, 2).unwrap();
        assert_eq!(parts.len(), 9);
        for mut part in parts.into_iter().rev() {
            for token in part.tokens() {
                let row = (token * heads + part.head()) * dim;
                part.write(token, &k[row..][..dim], &v[row..][..dim]);
            }
        }
        for head in 0..heads {
            let read = |cache: &KvCache| {
                [cache.layer(1).keys(head, 0..6), cache.layer(1).values(head, 0..6)].map(to_f32)
            };
            assert_eq!(read(&cache), read(&whole));
        }
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

    /// What a device would do.
    #[test]
    fn claimed_tokens_are_read_from_where_they_belong() {
        for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
            let [mut written, mut claimed] =
                [(); 2].map(|()| KvCache::new(2, 3, 32, 5, kind).unwrap());
            written.write(1, 0, &numbers(192, 1), &numbers(192, 2)).unwrap();
            for place in written.places(1) {
                let bytes = written.bytes_mut()[place.clone()].to_vec();
                claimed.bytes_mut()[place].copy_from_slice(&bytes);
            }
            claimed.claim(1, 0, 2).unwrap();
            assert_eq!((claimed.len(), claimed.layer(1).len()), (0, 2));
            if kind != KvType::Q8_0 {
                for head in 0..3 {
                    let read = |cache: &KvCache| {
                        let layer = cache.layer(1);
                        [layer.keys(head, 0..2), layer.values(head, 0..2)].map(to_f32)
                    };
                    assert_eq!(read(&claimed), read(&written));
                }
            }
            let (stamp, other) = (claimed.stamp(1), claimed.stamp(0));
            claimed.write(0, 0, &[0.0; 96], &[0.0; 96]).unwrap();
            assert!(claimed.stamp(1) == stamp && claimed.stamp(0) != other);
            assert!(claimed.claim(1, 3, 1).unwrap_err().to_string().contains("at most 2"));
            assert!(claimed.claim(1, 2, 4).unwrap_err().to_string().contains("full"));
        }
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
        let message = KvCache::new(1, 1, 48, 1, KvType::Q8_0).unwrap_err().to_string();
        let expected = "KV cache in q8_0: head_dim: expected a multiple of 32, found 48: \
                        this model needs an f16 or f32 cache";
        assert_eq!(message, expected);
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
