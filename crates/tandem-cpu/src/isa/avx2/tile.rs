//! Products of two blocks of f32 rows: the arithmetic of prefill with weights as they are in files.
//!
//! [`dots`] keeps 4 x 3 sums in registers, each 8 lanes wide: 12 of the 16 registers. For 12 multiply-adds it
//! loads 7 vectors, so the arithmetic units are the limit, not the loads. Both operands are read along their
//! rows, as they lie in memory; nothing is rearranged first.

use std::arch::x86_64::*;

use super::super::Rows;

/// Adds the lanes of a vector. Everything here adds lanes in this order.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn sum_lanes(v: __m256) -> f32 {
    let pairs = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let pairs = _mm_add_ps(pairs, _mm_movehl_ps(pairs, pairs));
    _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)))
}

/// Adds to `out[j][i]` the dot product of row `i` of `a` and row `j` of `b`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dots(a: Rows<'_>, b: Rows<'_>, out: &mut [f32]) {
    assert_eq!(a.len, b.len, "length of the rows");
    assert_eq!(out.len(), a.count * b.count, "numbers of the result");
    for j in (0..b.count).step_by(3) {
        for i in (0..a.count).step_by(4) {
            match b.count - j {
                1 => dots_of::<1>(a, i, b, j, out),
                2 => dots_of::<2>(a, i, b, j, out),
                _ => dots_of::<3>(a, i, b, j, out),
            }
        }
    }
}

/// `dots` of up to 4 rows of `a` from `i` on and `B` rows of `b` from `j` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dots_of<const B: usize>(a: Rows<'_>, i: usize, b: Rows<'_>, j: usize, out: &mut [f32]) {
    match a.count - i {
        1 => dots_block::<1, B>(a, i, b, j, out),
        2 => dots_block::<2, B>(a, i, b, j, out),
        3 => dots_block::<3, B>(a, i, b, j, out),
        _ => dots_block::<4, B>(a, i, b, j, out),
    }
}

/// `dots` of `A` rows of `a` from `i` on and `B` rows of `b` from `j` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dots_block<const A: usize, const B: usize>(
    a: Rows<'_>,
    i: usize,
    b: Rows<'_>,
    j: usize,
    out: &mut [f32],
) {
    let (width, len) = (a.count, a.len);
    let a: [&[f32]; A] = std::array::from_fn(|k| a.row(i + k));
    let b: [&[f32]; B] = std::array::from_fn(|k| b.row(j + k));
    let mut sums = [[_mm256_setzero_ps(); B]; A];
    let whole = len / 8 * 8;
    for k in (0..whole).step_by(8) {
        // SAFETY: every row is `len` long (`Rows::row` checked), and `k + 8 <= len`.
        let b: [__m256; B] =
            std::array::from_fn(|n| unsafe { _mm256_loadu_ps(b[n].as_ptr().add(k)) });
        for m in 0..A {
            // SAFETY: as above.
            let a = unsafe { _mm256_loadu_ps(a[m].as_ptr().add(k)) };
            for n in 0..B {
                sums[m][n] = _mm256_fmadd_ps(a, b[n], sums[m][n]);
            }
        }
    }
    for m in 0..A {
        for n in 0..B {
            let rest = a[m][whole..].iter().zip(&b[n][whole..]);
            out[(j + n) * width + i + m] +=
                rest.fold(sum_lanes(sums[m][n]), |sum, (a, b)| a.mul_add(*b, sum));
        }
    }
}
