//! x86-64 with AVX2, FMA and F16C: every x86 laptop and server of the last ten years.
//!
//! A value of [`Avx2`] is the proof that this machine has the instructions: it can be made only by
//! [`Avx2::new`], which looks. Every function in this folder that uses them is `unsafe` to call only because of
//! that, unless it says otherwise; what memory they touch is given by slices, and checked.
#![allow(unsafe_code)]

mod decode;
mod dot;
mod math;
mod tile;

use tandem_formats::DType;

pub(super) use math::{exp, exp_constants};

use super::generic::{self, Generic};
use super::{Kernels, Rows};

/// The kernels for machines with AVX2, FMA and F16C.
pub(super) struct Avx2 {
    /// Keeps others from making one.
    _checked: (),
}

impl Avx2 {
    /// The kernels, if this machine can run them.
    pub(super) fn new() -> Option<Self> {
        let available = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        available.then_some(Self { _checked: () })
    }
}

impl Kernels for Avx2 {
    fn decode(&self, dtype: DType, bytes: &[u8], out: &mut [f32]) {
        // SAFETY: `self` exists, so the machine has the instructions.
        let done = unsafe { decode::decode(dtype, bytes, out) };
        if !done {
            Generic.decode(dtype, bytes, out);
        }
    }

    fn dot(&self, dtype: DType, row: &[u8], x: &[f32]) -> f32 {
        // SAFETY: `self` exists, so the machine has the instructions.
        match unsafe { dot::dot(dtype, row, x) } {
            Some(dot) => dot,
            None => dot::decoded(self, dtype, row, x),
        }
    }

    fn dots(&self, a: Rows<'_>, b: Rows<'_>, out: &mut [f32]) {
        // SAFETY: `self` exists, so the machine has the instructions.
        unsafe { tile::dots(a, b, out) }
    }

    fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: `self` exists, so the machine has the instructions.
        unsafe { math::silu_mul(gate, up) }
    }

    fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: `self` exists, so the machine has the instructions.
        unsafe { layer_norm(x, weight, bias, eps, out) }
    }
}

/// The plain loop, compiled with these instructions: it is written to become vector instructions.
#[target_feature(enable = "avx2,fma,f16c")]
fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    generic::layer_norm(x, weight, bias, eps, out);
}
