//! Layer normalisation.

use super::{LOCAL, Precision, Quantized, QuantizedRoom};
use crate::error::Result;
use crate::gpu::{Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

pub(crate) const LAYER_NORM: Source =
    Source { file: "layer_norm.cl", text: include_str!("../../kernels/layer_norm.cl") };
pub(crate) const NORM_QUANTIZE: Source = Source {
    file: "norm_quantize.cl",
    text: concat!(
        include_str!("../../kernels/quantized.cl"),
        include_str!("../../kernels/norm_quantize.cl")
    ),
};

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` for every token, with the biased variance.
///
/// `x` and `out` are `[token][width]`, `weight` and `bias` `[width]`.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn layer_norm(
    scope: &Scope<'_, '_>,
    x: &Region<'_, f32>,
    weight: &Region<'_, f32>,
    bias: &Region<'_, f32>,
    eps: f32,
    out: &RegionMut<'_, f32>,
) -> Result<()> {
    let width = weight.len();
    let tokens = check(x, weight, bias, out);
    let (defines, global) = ([("WIDTH", width)], [tokens * GROUP, 1, 1]);
    let work =
        Work { source: LAYER_NORM, name: "layer_norm", defines: &defines, global, local: LOCAL };
    // SAFETY: a group has a row of `x` and `out`, and the vectors are as long as one.
    unsafe { scope.launch(work, &[x.into(), weight.into(), bias.into(), eps.into(), out.into()]) }
}

/// As [`layer_norm`], and quantizes the result to 8 bits on the way, into that room.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together, a row is no whole number of blocks of 32, or the room too small.
pub fn layer_norm_quantized<'scope>(
    scope: &Scope<'_, '_>,
    x: &Region<'_, f32>,
    weight: &Region<'_, f32>,
    bias: &Region<'_, f32>,
    eps: f32,
    (out, room): (&RegionMut<'_, f32>, &QuantizedRoom<'scope>),
) -> Result<Quantized<'scope>> {
    let width = weight.len();
    let tokens = check(x, weight, bias, out);
    let filled = room.holding(x.len(), width, Precision::Bits8);
    let (defines, global) = ([("WIDTH", width)], [tokens * GROUP, 1, 1]);
    let (source, name) = (NORM_QUANTIZE, "norm_quantize");
    let work = Work { source, name, defines: &defines, global, local: LOCAL };
    let blocks = room.blocks().into();
    // SAFETY: a group has a row of `x` and `out`, and its blocks of the room; the vectors are as long as a row.
    unsafe {
        scope.launch(
            work,
            &[x.into(), weight.into(), bias.into(), eps.into(), out.into(), blocks],
        )?;
    }
    Ok(filled)
}

/// Holds shapes against each other; answers how many tokens there are.
fn check(
    x: &Region<'_, f32>,
    weight: &Region<'_, f32>,
    bias: &Region<'_, f32>,
    out: &RegionMut<'_, f32>,
) -> usize {
    assert_eq!(bias.len(), weight.len(), "layer norm bias");
    assert_eq!(out.len(), x.len(), "layer norm output");
    super::tokens("layer norm input", x.len(), weight.len())
}
