//! What a page looks like inside.

use std::ops::Range;

use super::{KV_BLOCK, KvError, KvType};

/// Tokens of a page. A power of two, so that devices find a position's page by shifting.
///
/// Each page ends the runs of memory that attention reads, and each sequence leaves half a page unused in the mean.
/// `bench/results` has what decode and prefill make of other sizes: `examples/attention_speed.rs` of tandem-cpu measures.
pub const PAGE_TOKENS: usize = 64;

/// Parts of a page begin at multiples of this many bytes.
const ALIGN: usize = 64;

/// The shape of keys and values: what one token of a model takes, and how many make a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Numbers of one head's key.
    pub head_dim: usize,
    /// How they are stored.
    pub kind: KvType,
    /// Tokens of a page, a power of two.
    pub page_tokens: usize,
}

/// Where in a page a layer's keys are, or its values, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlace {
    /// `[kv_head][position][head_dim]`.
    pub numbers: Range<usize>,
    /// Their scales, `[kv_head][position][head_dim / 32]`; none but in [`KvType::Q8_0`].
    pub scales: Range<usize>,
}

impl KvShape {
    /// With pages of the usual size.
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize, kind: KvType) -> Self {
        Self { layers, kv_heads, head_dim, kind, page_tokens: PAGE_TOKENS }
    }

    /// With pages of so many tokens, a power of two.
    #[must_use]
    pub fn with_page_tokens(self, page_tokens: usize) -> Self {
        Self { page_tokens, ..self }
    }

    /// Pages that so many tokens take.
    pub fn pages(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_tokens)
    }

    /// Bytes of one token's keys and values, over all layers.
    pub fn token_bytes(&self) -> usize {
        2 * self.layers * self.kind.bytes(self.kv_heads * self.head_dim)
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }

    /// Bytes of one layer in a page: its keys, then its values.
    pub fn layer_bytes(&self) -> usize {
        2 * self.half().iter().sum::<usize>()
    }

    /// Where in a page a layer's keys are, and its values.
    pub fn places(&self, layer: usize) -> [KvPlace; 2] {
        let ([numbers, scales], [numbers_used, scales_used]) = (self.half(), self.used());
        [0, 1].map(|half| {
            let start = layer * self.layer_bytes() + half * (numbers + scales);
            KvPlace {
                numbers: start..start + numbers_used,
                scales: start + numbers..start + numbers + scales_used,
            }
        })
    }

    /// Bytes of one head's key, or of its value: of its numbers, and of their scales.
    pub(super) fn row(&self) -> [usize; 2] {
        self.kind.bytes_of(self.head_dim)
    }

    /// Whether pages for `tokens` tokens can be made.
    pub(super) fn check(&self, tokens: usize) -> Result<(), KvError> {
        let &Self { layers, kv_heads, head_dim, kind, page_tokens } = self;
        if kind == KvType::Q8_0 && !head_dim.is_multiple_of(KV_BLOCK) {
            return Err(KvError::Blocks(head_dim));
        }
        // 4 bytes are the most that a number takes, and ALIGN the most that is left free after it.
        let padded = tokens.checked_next_multiple_of(page_tokens);
        let most = [2, kv_heads, head_dim, 4 * ALIGN]
            .into_iter()
            .try_fold(layers, usize::checked_mul)
            .and_then(|bytes| bytes.checked_mul(padded?));
        let fits = tokens > 0 && page_tokens.is_power_of_two() && most.is_some_and(|most| most > 0);
        let fault = KvError::Shape { layers, kv_heads, head_dim, capacity: tokens };
        if fits { Ok(()) } else { Err(fault) }
    }

    /// Bytes of a layer's keys in a page, or of its values: the numbers, and their scales.
    fn used(&self) -> [usize; 2] {
        self.kind.bytes_of(self.kv_heads * self.page_tokens * self.head_dim)
    }

    /// The same with what is left free after each.
    fn half(&self) -> [usize; 2] {
        self.used().map(|bytes| bytes.next_multiple_of(ALIGN))
    }
}
