//! Products of two blocks of f32 rows: the arithmetic of prefill, and of attention.
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

/// Adds to row `i` of `out` the rows of `values`, weighted by row `i` of `weights`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn weighted_sums(weights: Rows<'_>, values: Rows<'_>, out: &mut [f32]) {
    assert_eq!(weights.len, values.count, "weights of a sum");
    assert_eq!(out.len(), weights.count * values.len, "numbers of the result");
    for i in (0..weights.count).step_by(4) {
        match weights.count - i {
            1 => weighted_rows::<1>(weights, i, values, out),
            2 => weighted_rows::<2>(weights, i, values, out),
            3 => weighted_rows::<3>(weights, i, values, out),
            _ => weighted_rows::<4>(weights, i, values, out),
        }
    }
}

/// `weighted_sums` of `A` rows of weights from `i` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn weighted_rows<const A: usize>(weights: Rows<'_>, i: usize, values: Rows<'_>, out: &mut [f32]) {
    let width = values.len;
    let mut column = 0;
    while column + 16 <= width {
        weighted_columns::<A, 2>(weights, i, values, column, out);
        column += 16;
    }
    if column + 8 <= width {
        weighted_columns::<A, 1>(weights, i, values, column, out);
        column += 8;
    }
    for row in i..i + A {
        for column in column..width {
            let out = &mut out[row * width + column];
            *out = (weights.row(row).iter().enumerate())
                .fold(*out, |sum, (k, weight)| weight.mul_add(values.row(k)[column], sum));
        }
    }
}

/// `weighted_sums` of `A` rows of weights from `i` on, for `8 * V` columns from `column` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn weighted_columns<const A: usize, const V: usize>(
    weights: Rows<'_>,
    i: usize,
    values: Rows<'_>,
    column: usize,
    out: &mut [f32],
) {
    let width = values.len;
    let weights: [&[f32]; A] = std::array::from_fn(|m| weights.row(i + m));
    let mut sums: [[__m256; V]; A] = std::array::from_fn(|m| {
        let out = &out[(i + m) * width + column..][..8 * V];
        // SAFETY: `out` was just checked to be `8 * V` numbers.
        std::array::from_fn(|n| unsafe { _mm256_loadu_ps(out.as_ptr().add(8 * n)) })
    });
    #[expect(
        clippy::needless_range_loop,
        reason = "`k` is a column of weights and a row of values"
    )]
    for k in 0..values.count {
        let row = &values.row(k)[column..][..8 * V];
        // SAFETY: `row` was just checked to be `8 * V` numbers.
        let v: [__m256; V] =
            std::array::from_fn(|n| unsafe { _mm256_loadu_ps(row.as_ptr().add(8 * n)) });
        for m in 0..A {
            let weight = _mm256_set1_ps(weights[m][k]);
            for n in 0..V {
                sums[m][n] = _mm256_fmadd_ps(weight, v[n], sums[m][n]);
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        let out = &mut out[(i + m) * width + column..][..8 * V];
        for (n, sum) in sums.iter().enumerate() {
            // SAFETY: `out` was just checked to be `8 * V` numbers.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * n), *sum) };
        }
    }
}
