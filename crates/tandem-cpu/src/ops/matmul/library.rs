//! Products of many tokens by oneDNN: tiles of weights are decoded to f32 and multiplied with all tokens of an item.
//!
//! Tiles are the same for any number of threads, so results are too.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use tandem_memory::packed::{BLOCK_COLS, TILE_ROWS};
use tandem_memory::{PackedMatrix, PackedType};

use super::{Cut, Output};
use crate::cpu::Cpu;
use crate::onednn::{Gemm, OneDnn};
use crate::ops::{Input, MatrixRef, Weights};
use crate::scratch::with_scratch;

/// Tokens from which on decoding a weight is little beside what it is used for.
const FEWEST_TOKENS: usize = 32;
/// Rows from which on: a router has fewer, and its choices jump where sums are added up in another order.
const FEWEST_ROWS: usize = 64;
/// Rows of a tile: a part of every matrix's rows, few enough that threads of different speed end together.
const ROWS: usize = 64;
/// Columns of a tile: 512 KiB of weights, which stay in a second-level cache.
const COLS: usize = 2048;
/// Tokens of an item, at most.
const TOKENS: usize = 512;

/// The library, where it is to compute a product.
pub(super) fn takes<'a>(cpu: &'a Cpu, weights: &Weights<'_>, tokens: usize) -> Option<&'a OneDnn> {
    cpu.onednn().filter(|_| tokens >= FEWEST_TOKENS && weights.rows() >= FEWEST_ROWS)
}

pub(super) fn cut(tokens: usize) -> Cut {
    let blocks = tokens.div_ceil(TOKENS).max(1);
    Cut { rows: ROWS, tokens: tokens.div_ceil(blocks).max(1) }
}

/// Computes one item.
pub(super) fn run(
    (cpu, onednn): (&Cpu, &OneDnn),
    weights: &Weights<'_>,
    input: Input<'_>,
    rows: Range<usize>,
    tokens: Range<usize>,
    output: &Output<'_>,
) {
    let cols = weights.cols();
    let part_cols = COLS.min(cols);
    // Packed tiles come in whole ones.
    let width = match weights {
        Weights::Packed(_) => rows.len().next_multiple_of(TILE_ROWS),
        Weights::Rows(_) => rows.len(),
    };
    // Tokens that are selected from a batch lie anywhere: what a tile needs of them is gathered first.
    let gathered = if input.is_selection() { tokens.len() * part_cols } else { 0 };
    let lengths = [width * part_cols, tokens.len() * width, gathered];
    with_scratch(lengths, |[decoded, sums, gathered]| {
        for start in (0..cols).step_by(part_cols) {
            let part = start..(start + part_cols).min(cols);
            let decoded = &mut decoded[..width * part.len()];
            let b_transposed = match weights {
                Weights::Rows(matrix) => {
                    decode_rows(cpu, matrix, rows.clone(), part.clone(), decoded);
                    true
                }
                Weights::Packed(matrix) => {
                    decode_tiles(matrix, rows.clone(), part.clone(), decoded);
                    false
                }
            };
            let (a, a_stride) = if input.is_selection() {
                for (token, out) in tokens.clone().zip(gathered.chunks_exact_mut(part.len())) {
                    out.copy_from_slice(&input.row(token, cols)[part.clone()]);
                }
                (&*gathered, part.len())
            } else {
                (&input.rows()[tokens.start * cols + start..], cols)
            };
            let (m, n, k) = (tokens.len(), width, part.len());
            let gemm = Gemm { m, n, k, a_stride, b_transposed, accumulate: start > 0 };
            onednn.multiply(gemm, a, decoded, sums);
        }
        for (token, sums) in tokens.zip(sums.chunks_exact(width)) {
            output.write(token, rows.start, &sums[..rows.len()]);
        }
    });
}

/// Some columns of some rows as f32, `rows x columns`.
fn decode_rows(
    cpu: &Cpu,
    matrix: &MatrixRef<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    out: &mut [f32],
) {
    for (row, out) in rows.zip(out.chunks_exact_mut(cols.len())) {
        cpu.kernels().decode(matrix.dtype, matrix.row_part(row, cols.clone()), out);
    }
}

/// Some columns of whole tiles as f32, `columns x rows`: the order in which they lie, so that lanes stay lanes.
fn decode_tiles(
    matrix: &PackedMatrix<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    out: &mut [f32],
) {
    let layout = matrix.layout();
    let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
    let width = tiles.len() * TILE_ROWS;
    let blocks = cols.start / BLOCK_COLS..cols.end / BLOCK_COLS;
    for (n, tile) in tiles.enumerate() {
        let (quants, scales) = matrix.tile(tile);
        let quants = quants.chunks_exact(layout.kind().quant_bytes());
        let scales = scales.as_chunks::<TILE_ROWS>().0.iter();
        let range = |i: &usize| blocks.contains(i);
        let numbered = (0..).zip(quants.zip(scales)).filter(|(i, _)| range(i));
        for ((_, (quants, scales)), out) in numbered.zip(out.chunks_exact_mut(BLOCK_COLS * width)) {
            let mut lanes = [0.0; TILE_ROWS];
            scales.convert_to_f32_slice(&mut lanes);
            let out = &mut out[n * TILE_ROWS..];
            match layout.kind() {
                PackedType::Q4_0 => decode_q4(quants, &lanes, out, width),
                PackedType::Q8_0 => decode_q8(quants, &lanes, out, width),
            }
        }
    }
}

/// The four consecutive bytes of each of 16 rows.
fn groups(quants: &[u8]) -> impl Iterator<Item = [u32; TILE_ROWS]> + '_ {
    let lanes = quants.as_chunks::<4>().0;
    lanes.as_chunks::<TILE_ROWS>().0.iter().map(|lanes| lanes.map(u32::from_le_bytes))
}

fn decode_q8(quants: &[u8], scales: &[f32; TILE_ROWS], out: &mut [f32], width: usize) {
    for (group, lanes) in groups(quants).enumerate() {
        for i in 0..4 {
            let out = &mut out[(4 * group + i) * width..][..TILE_ROWS];
            for ((out, lane), scale) in out.iter_mut().zip(lanes).zip(scales) {
                let quant = (lane << (24 - 8 * i)).cast_signed() >> 24;
                *out = quant as f32 * scale;
            }
        }
    }
}

fn decode_q4(quants: &[u8], scales: &[f32; TILE_ROWS], out: &mut [f32], width: usize) {
    for (group, lanes) in groups(quants).enumerate() {
        for (half, i) in [0, 1].into_iter().flat_map(|half| (0..4).map(move |i| (half, i))) {
            let column = 16 * half + 4 * group + i;
            let out = &mut out[column * width..][..TILE_ROWS];
            for ((out, lane), scale) in out.iter_mut().zip(lanes).zip(scales) {
                let quant = (lane >> (8 * i + 4 * half) & 15).cast_signed() - 8;
                *out = quant as f32 * scale;
            }
        }
    }
}
