//! Writing keys and values.

use std::ops::Range;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use tandem_formats::{DType, blocks};

use super::{KV_BLOCK, KvShape, KvType};

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

impl<'a> KvPart<'a> {
    /// Cuts some positions of a page's layer into parts: one for every KV head and every `len` tokens. `first` is the number
    /// of the first position's token among those that are written.
    pub(super) fn of_page(
        shape: &KvShape,
        page: &'a mut [u8],
        layer: usize,
        positions: Range<usize>,
        (first, len): (usize, usize),
    ) -> Vec<Self> {
        let (kind, row) = (shape.kind, shape.row());
        let mut places = shape.layer_places(page, layer);
        let mut parts = Vec::with_capacity(shape.kv_heads * positions.len().div_ceil(len));
        for head in 0..shape.kv_heads {
            let mut take = |rows| places.each_mut().map(|places| places.take(row, rows));
            take(positions.start);
            for start in positions.clone().step_by(len) {
                let rows = len.min(positions.end - start);
                let token = first + start - positions.start;
                let [keys, values] = take(rows);
                parts.push(KvPart { kind, row, head, tokens: token..token + rows, keys, values });
            }
            take(shape.page_tokens - positions.end);
        }
        parts
    }
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

/// Room for keys, or for values.
#[derive(Debug)]
pub(super) struct Places<'a> {
    pub(super) numbers: &'a mut [u8],
    pub(super) scales: &'a mut [u8],
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

impl KvShape {
    /// A layer's keys and values in a page.
    fn layer_places<'a>(&self, page: &'a mut [u8], layer: usize) -> [Places<'a>; 2] {
        let bytes = self.layer_bytes();
        let (keys, values) = page[layer * bytes..][..bytes].split_at_mut(bytes / 2);
        let place = self.places(0)[0].clone();
        [keys, values].map(|half| {
            let (numbers, scales) = half.split_at_mut(place.scales.start);
            let scales = &mut scales[..place.scales.len()];
            Places { numbers: &mut numbers[place.numbers.clone()], scales }
        })
    }

    /// Copies the first `rows` positions of every layer from one page to another.
    pub(super) fn copy_rows(&self, from: &[u8], to: &mut [u8], rows: usize) {
        let row = self.row();
        for layer in 0..self.layers {
            for place in self.places(layer) {
                for (bytes, row) in [(place.numbers, row[0]), (place.scales, row[1])] {
                    for head in 0..self.kv_heads {
                        let start = bytes.start + head * self.page_tokens * row;
                        let run = start..start + rows * row;
                        to[run.clone()].copy_from_slice(&from[run]);
                    }
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
