//! The dot product of a row of encoded weights and f32 activations, decoding in registers: the arithmetic of
//! decode, where every weight is used once and the row streams in from memory.
//!
//! Four running sums hide the latency of the multiply-add. Blocks are summed as whole quants first and scaled
//! once per vector.

use std::arch::x86_64::*;

use tandem_formats::DType;

use super::super::{Kernels, Rows};
use super::Avx2;
use super::decode::{self, Block, bf16x8, f16x8, f32x8};
use super::tile::sum_lanes;
use crate::scratch::with_scratch;

/// The dot product; `None` where the encoding has no way of its own here.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot(dtype: DType, row: &[u8], x: &[f32]) -> Option<f32> {
    assert_eq!(
        dtype.bytes_for(x.len()),
        Some(row.len()),
        "bytes of {} weights of {dtype}",
        x.len()
    );
    Some(match dtype {
        // SAFETY: 8 weights are 16 bytes.
        DType::BF16 => floats::<16>(row, x, |chunk| unsafe { bf16x8(chunk.as_ptr()) }),
        // SAFETY: 8 weights are 16 bytes.
        DType::F16 => floats::<16>(row, x, |chunk| unsafe { f16x8(chunk.as_ptr()) }),
        // SAFETY: 8 weights are 32 bytes.
        DType::F32 => floats::<32>(row, x, |chunk| unsafe { f32x8(chunk.as_ptr()) }),
        DType::Q8_0 => blocks::<34>(row, x, |block| decode::q8_0(block)),
        DType::Q4_0 => blocks::<18>(row, x, |block| decode::q4_0(block)),
        _ => return None,
    })
}

/// The dot product by way of decoding the row into scratch.
pub(super) fn decoded(kernels: &Avx2, dtype: DType, row: &[u8], x: &[f32]) -> f32 {
    with_scratch([x.len()], |[weights]| {
        kernels.decode(dtype, row, weights);
        let mut sum = [0.0];
        kernels.dots(Rows::packed(weights, 1), Rows::packed(x, 1), &mut sum);
        sum[0]
    })
}

/// The dot product of plain floats, 8 of them in `BYTES` bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn floats<const BYTES: usize>(row: &[u8], x: &[f32], load: impl Fn(&[u8; BYTES]) -> __m256) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let (chunks, rest) = row.as_chunks::<BYTES>();
    let (xs, x_rest) = x.as_chunks::<8>();
    let (chunks4, chunks) = chunks.as_chunks::<4>();
    let (xs4, xs) = xs.as_chunks::<4>();
    for (chunks, xs) in chunks4.iter().zip(xs4) {
        for n in 0..4 {
            // SAFETY: `xs[n]` is 8 numbers.
            let x = unsafe { _mm256_loadu_ps(xs[n].as_ptr()) };
            sums[n] = _mm256_fmadd_ps(load(&chunks[n]), x, sums[n]);
        }
    }
    for (chunk, x) in chunks.iter().zip(xs) {
        // SAFETY: `x` is 8 numbers.
        let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
        sums[0] = _mm256_fmadd_ps(load(chunk), x, sums[0]);
    }
    let (mut padded, mut padded_x) = ([0; BYTES], [0.0; 8]);
    padded[..rest.len()].copy_from_slice(rest);
    padded_x[..x_rest.len()].copy_from_slice(x_rest);
    // SAFETY: `padded_x` is 8 numbers.
    let x = unsafe { _mm256_loadu_ps(padded_x.as_ptr()) };
    sums[1] = _mm256_fmadd_ps(load(&padded), x, sums[1]);
    sum_of(sums)
}

/// The dot product of blocks of 32 weights, each of `BYTES` bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn blocks<const BYTES: usize>(row: &[u8], x: &[f32], load: impl Fn(&[u8; BYTES]) -> Block) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    for (block, x) in row.as_chunks::<BYTES>().0.iter().zip(x.as_chunks::<32>().0) {
        let block = load(block);
        for (n, x) in x.as_chunks::<8>().0.iter().enumerate() {
            // SAFETY: `x` is 8 numbers.
            let x = _mm256_mul_ps(unsafe { _mm256_loadu_ps(x.as_ptr()) }, block.scale);
            sums[n] = _mm256_fmadd_ps(block.quants[n], x, sums[n]);
        }
    }
    sum_of(sums)
}

/// The sum of all lanes of four vectors.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum_of(sums: [__m256; 4]) -> f32 {
    let low = _mm256_add_ps(sums[0], sums[1]);
    sum_lanes(_mm256_add_ps(low, _mm256_add_ps(sums[2], sums[3])))
}
