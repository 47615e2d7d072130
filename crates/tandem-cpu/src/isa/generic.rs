//! Plain Rust, for every machine; also what the other instruction sets fall back to.
//!
//! Sums run in [`LANES`] independent lanes: that is both more accurate than one running sum and what a compiler
//! can turn into vector instructions without changing the result.

use tandem_formats::{DType, blocks};

use super::{Kernels, Rows};
use crate::prefetch::prefetch;
use crate::scratch::with_scratch;

/// Independent partial sums.
const LANES: usize = 8;

/// The kernels in plain Rust.
pub(super) struct Generic;

impl Kernels for Generic {
    fn decode(&self, dtype: DType, bytes: &[u8], out: &mut [f32]) {
        blocks::dequantize(dtype, bytes, out);
    }

    fn dot(&self, dtype: DType, row: &[u8], x: &[f32]) -> f32 {
        with_scratch([x.len()], |[weights]| {
            self.decode(dtype, row, weights);
            dot(weights, x)
        })
    }

    fn dots(&self, a: Rows<'_>, b: Rows<'_>, out: &mut [f32]) {
        assert_eq!(a.len, b.len, "length of the rows");
        assert_eq!(out.len(), a.count * b.count, "numbers of the result");
        for (j, out) in out.chunks_exact_mut(a.count.max(1)).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                *out += dot(a.row(i), b.row(j));
            }
        }
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        silu_mul(gate, up);
    }

    fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        layer_norm(x, weight, bias, eps, out);
    }
}

/// `gate = silu(gate) * up`, one number after the other.
pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
}

/// The dot product of two rows of equal length.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    a_rest.iter().zip(b_rest).fold(lanes.iter().sum(), |sum, (a, b)| sum + a * b)
}

/// Layer normalisation of one row, in two passes of f64 sums: exact to f32 rounding, however far the mean is
/// from zero. Inlined so that an instruction set can compile it with its own vector instructions.
#[inline(always)]
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let count = x.len() as f64;
    // Weight and bias come from memory, which takes as long as the two sums.
    let mean = sum(x, weight, |x| x) / count;
    let variance = sum(x, bias, |x| (x - mean) * (x - mean)) / count;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = ((f64::from(*x) - mean) * scale) as f32 * weight + bias;
    }
}

/// The sum of a function of every number, in as many lanes as keep additions from waiting for each other. Asks meanwhile
/// for as many numbers that will be needed then.
#[inline(always)]
fn sum(x: &[f32], then: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    const SUMS: usize = 4 * LANES;
    let mut lanes = [0f64; SUMS];
    let (x, rest) = x.as_chunks::<SUMS>();
    for (x, then) in x.iter().zip(then.as_chunks::<SUMS>().0) {
        prefetch(then, 0);
        for lane in 0..SUMS {
            lanes[lane] += f(f64::from(x[lane]));
        }
    }
    rest.iter().fold(lanes.iter().sum(), |sum, x| sum + f(f64::from(*x)))
}
