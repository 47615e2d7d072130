//! What goes through the model in one pass: tokens of one or more sequences.

use std::ops::Range;

use tandem_memory::KvCache;
use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::output::LogitsFor;
use crate::error::{Result, RuntimeError};

/// Tokens of one sequence.
pub struct Segment<'a> {
    /// The tokens.
    pub ids: &'a [u32],
    /// The sequence's cache: it holds the tokens before these, and afterwards these as well.
    pub kv: &'a mut KvCache,
    /// Which of the tokens logits are wanted for.
    pub wanted: LogitsFor,
}

/// Tokens that go through the model together.
pub(super) struct Batch {
    pub(super) ids: Vec<u32>,
    /// Where each sequence's tokens are.
    pub(super) parts: Vec<Part>,
    /// Runs of tokens whose logits are wanted.
    wanted: Vec<Range<usize>>,
    /// Bytes of a token's keys and values, over all layers.
    kv_bytes_per_token: usize,
}

/// Tokens of one sequence.
pub(super) struct Part {
    /// Their numbers in the batch.
    tokens: Range<usize>,
    /// Position of the first.
    pub(super) start: usize,
}

impl Part {
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The position after the last.
    pub(super) fn end(&self) -> usize {
        self.start + self.len()
    }

    /// Where the tokens' rows are, among rows of that width for all tokens of the batch.
    pub(super) fn rows(&self, width: usize) -> Range<usize> {
        scaled(&self.tokens, width)
    }
}

impl Batch {
    /// Sees to it that every cache has the pages that its tokens need.
    ///
    /// # Errors
    /// Where tokens do not fit their cache, there are no pages for them, or ids do not fit the vocabulary.
    pub(super) fn new(segments: &mut [Segment<'_>], vocab_size: usize) -> Result<Self> {
        let kv_bytes_per_token = segments.first().map_or(0, |first| first.kv.bytes_per_token());
        let (ids, parts, wanted) = (Vec::new(), Vec::new(), Vec::new());
        let mut batch = Self { ids, parts, wanted, kv_bytes_per_token };
        for Segment { ids, kv, wanted } in segments {
            check_ids(ids, vocab_size)?;
            let (first, start) = (batch.ids.len(), kv.len());
            kv.reserve(start + ids.len())?;
            batch.ids.extend_from_slice(ids);
            batch.parts.push(Part { tokens: first..batch.ids.len(), start });
            let wanted = wanted.tokens(ids.len());
            batch.want(first + wanted.start..first + wanted.end);
        }
        Ok(batch)
    }

    fn want(&mut self, tokens: Range<usize>) {
        match self.wanted.last_mut() {
            _ if tokens.is_empty() => {}
            Some(last) if last.end == tokens.start => last.end = tokens.end,
            _ => self.wanted.push(tokens),
        }
    }

    /// Tokens whose logits are wanted.
    pub(super) fn n_wanted(&self) -> usize {
        self.wanted.iter().map(Range::len).sum()
    }

    /// The rows of tokens whose logits are wanted, in runs, among rows of that width for all tokens.
    pub(super) fn wanted_rows(&self, width: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        self.wanted.iter().map(move |tokens| scaled(tokens, width))
    }

    /// Tokens of the longest sequence, after this pass.
    pub(super) fn longest(&self) -> usize {
        self.parts.iter().map(Part::end).max().unwrap_or(0)
    }

    /// Numbers of the largest results that two devices share.
    pub(super) fn largest_parts(&self, c: &PhimoeConfig) -> usize {
        let tokens = self.ids.len();
        [
            tokens * (c.q_dim() + 2 * c.kv_dim()),
            EXPERTS_PER_TOKEN * tokens * (2 * c.expert_width).max(c.hidden_size),
            self.n_wanted() * c.vocab_size,
        ]
        .into_iter()
        .fold(0, usize::max)
    }

    /// Two halves, and which of the sequences each has: where one is cut, both have it.
    pub(super) fn halves(&self) -> [(Self, Range<usize>); 2] {
        let middle = self.ids.len().div_ceil(2);
        [0..middle, middle..self.ids.len()].map(|tokens| {
            let common = |part: &Range<usize>| {
                let (start, end) = (part.start.max(tokens.start), part.end.min(tokens.end));
                start.saturating_sub(tokens.start)..end.saturating_sub(tokens.start)
            };
            let is_here = |part: &Part| !common(&part.tokens).is_empty();
            let first = self.parts.iter().position(is_here).unwrap_or(0);
            let parts: Vec<Part> = self.parts[first..]
                .iter()
                .take_while(|part| is_here(part))
                .map(|part| {
                    let before = tokens.start.saturating_sub(part.tokens.start);
                    Part { tokens: common(&part.tokens), start: part.start + before }
                })
                .collect();
            let wanted = self.wanted.iter().map(common).filter(|range| !range.is_empty());
            let sequences = first..first + parts.len();
            let half = Self {
                ids: self.ids[tokens.clone()].to_vec(),
                wanted: wanted.collect(),
                parts,
                kv_bytes_per_token: self.kv_bytes_per_token,
            };
            (half, sequences)
        })
    }

    /// Bytes of keys and values that a layer's attention reads, and its arithmetic.
    pub(super) fn attention_cost(&self, config: &PhimoeConfig) -> (usize, usize) {
        let window = config.sliding_window.unwrap_or(usize::MAX);
        let read: usize = self.parts.iter().map(|part| part.end().min(window)).sum();
        let positions = self.parts.iter().flat_map(|part| part.start..part.end());
        let visible: usize = positions.map(|i| (i + 1).min(window)).sum();
        (read * self.kv_bytes_per_token / config.n_layers, 2 * 2 * config.q_dim() * visible)
    }
}

/// Whether all ids are below the vocabulary's size.
pub(crate) fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(RuntimeError::TokenId { id, vocab_size }),
        None => Ok(()),
    }
}

fn scaled(range: &Range<usize>, width: usize) -> Range<usize> {
    range.start * width..range.end * width
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_memory::KvType;

    #[test]
    fn runs_of_wanted_tokens_and_their_sequences() {
        let mut caches = [0, 3, 7].map(|len| {
            let mut kv = KvCache::new(1, 1, 2, 9, KvType::F32).unwrap();
            kv.write(0, 0, &vec![0.0; 2 * len], &vec![0.0; 2 * len]).unwrap();
            kv
        });
        let wanted = [LogitsFor::Last, LogitsFor::All, LogitsFor::None];
        let mut segments = |ids: [&'static [u32]; 3]| -> Result<Batch> {
            let parts = ids.into_iter().zip(&mut caches).zip(wanted);
            let mut segments: Vec<_> =
                parts.map(|((ids, kv), wanted)| Segment { ids, kv, wanted }).collect();
            Batch::new(&mut segments, 10)
        };
        let batch = segments([&[1, 2, 3], &[4, 5], &[6, 7]]).unwrap();
        assert_eq!(batch.ids, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((batch.n_wanted(), batch.longest()), (3, 9));
        assert!(batch.wanted_rows(10).eq(std::iter::once(20..50)));
        let parts: Vec<_> = batch.parts.iter().map(|p| (p.rows(1), p.start, p.end())).collect();
        assert_eq!(parts, [(0..3, 0, 3), (3..5, 3, 5), (5..7, 7, 9)]);
        let message = |result: Result<Batch>| result.err().unwrap().to_string();
        assert_eq!(
            message(segments([&[1], &[2], &[6, 7, 8]])),
            "KV cache is full: 10 tokens needed, room for 9"
        );
        assert_eq!(
            message(segments([&[1], &[10], &[6]])),
            "token id 10: expected less than the vocabulary size 10"
        );
    }
}
