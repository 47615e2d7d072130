//! Operations on one number at a time, and the choice of the largest.

use super::activations::NUMBERS;
use super::{LOCAL, Precision, Quantized, QuantizedRoom};
use crate::error::Result;
use crate::gpu::{Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

pub(crate) const ELEMENTWISE: Source =
    Source { file: "elementwise.cl", text: include_str!("../../kernels/elementwise.cl") };
pub(crate) const SILU_QUANTIZE: Source = Source {
    file: "silu_quantize.cl",
    text: concat!(
        include_str!("../../kernels/quantized.cl"),
        include_str!("../../kernels/silu_quantize.cl")
    ),
};
pub(crate) const ARGMAX: Source =
    Source { file: "argmax.cl", text: include_str!("../../kernels/argmax.cl") };

/// `gate = silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When there are not as many numbers in both.
pub fn silu_mul(
    scope: &Scope<'_, '_>,
    gate: &RegionMut<'_, f32>,
    up: &Region<'_, f32>,
) -> Result<()> {
    assert_eq!(gate.len(), up.len(), "numbers of gate and up");
    let global = [up.len().next_multiple_of(GROUP), 1, 1];
    let work = Work { source: ELEMENTWISE, name: "silu_mul", defines: &[], global, local: LOCAL };
    // SAFETY: both have as many numbers as the kernel is told.
    unsafe { scope.launch(work, &[gate.into(), up.into(), up.len().into()]) }
}

/// As [`silu_mul`], and quantizes the result, `[token][cols]`, on the way, into that room.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// As [`silu_mul`] and [`Quantized::new`].
pub fn silu_mul_quantized<'scope>(
    scope: &Scope<'_, '_>,
    (gate, up): (&RegionMut<'_, f32>, &Region<'_, f32>),
    cols: usize,
    precision: Precision,
    room: &QuantizedRoom<'scope>,
) -> Result<Quantized<'scope>> {
    assert_eq!(gate.len(), up.len(), "numbers of gate and up");
    let filled = room.holding(gate.len(), cols, precision);
    let count = gate.len() / NUMBERS;
    let defines = [("PLANES", precision.planes())];
    let global = [count.next_multiple_of(GROUP), 1, 1];
    let (source, name) = (SILU_QUANTIZE, "silu_quantize");
    let work = Work { source, name, defines: &defines, global, local: LOCAL };
    // SAFETY: both have `count` fours, and the room their blocks for each plane, as `holding` has checked.
    unsafe {
        scope.launch(work, &[gate.into(), up.into(), room.blocks().into(), count.into()])?;
    }
    Ok(filled)
}

/// Index of the largest number of each row of `x`, `[row][width]`; the lowest index where several are. NaN counts as
/// the largest, so that it is noticed.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn argmax(
    scope: &Scope<'_, '_>,
    x: &Region<'_, f32>,
    width: usize,
    out: &RegionMut<'_, u32>,
) -> Result<()> {
    let rows = super::tokens("argmax", x.len(), width);
    assert_eq!(out.len(), rows, "results of argmax");
    let global = [rows * GROUP, 1, 1];
    let work = Work { source: ARGMAX, name: "argmax", defines: &[], global, local: LOCAL };
    // SAFETY: a group has a row of `x` and a number of `out`.
    unsafe { scope.launch(work, &[x.into(), width.into(), out.into()]) }
}
