//! Layer normalisation.

use super::LOCAL;
use crate::error::Result;
use crate::gpu::{Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

pub(crate) const LAYER_NORM: Source =
    Source { file: "layer_norm.cl", text: include_str!("../../kernels/layer_norm.cl") };

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
    let tokens = super::tokens("layer norm input", x.len(), width);
    assert_eq!(bias.len(), width, "layer norm bias");
    assert_eq!(out.len(), x.len(), "layer norm output");
    let (defines, global) = ([("WIDTH", width)], [tokens * GROUP, 1, 1]);
    let work =
        Work { source: LAYER_NORM, name: "layer_norm", defines: &defines, global, local: LOCAL };
    // SAFETY: a group has a row of `x` and `out`, and the vectors are as long as one.
    unsafe { scope.launch(work, &[x.into(), weight.into(), bias.into(), eps.into(), out.into()]) }
}
