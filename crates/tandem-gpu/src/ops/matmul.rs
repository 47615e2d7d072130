//! Products with packed weights.

use tandem_memory::{PackedLayout, PackedMatrix, PackedType};

use super::{LOCAL, Quantized};
use crate::error::Result;
use crate::gpu::{Region, RegionMut, Scope, Work};
use crate::path::{GROUP, LANES};
use crate::program::Source;

const SOURCE: Source =
    Source { file: "matmul_packed.cl", text: include_str!("../../kernels/matmul_packed.cl") };
/// Up to so many tokens the columns of a tile are shared out, since there are too few tiles to keep a device busy.
const FEW_TOKENS: usize = 8;
/// Rows of activations that a team takes at a time: a sum in a register for each.
const TEAM_ROWS: usize = 8;
/// Tiles, and blocks of tokens, of a work-group.
const SIDE: usize = 4;

/// Flags of the kernels, as in their source.
const HAS_BIAS: usize = 1;
const ADD_TO: usize = 2;

/// A packed matrix that is lent to a device.
#[derive(Clone, Debug)]
pub struct PackedWeights<'scope> {
    layout: PackedLayout,
    bytes: Region<'scope, u8>,
}

impl<'scope> PackedWeights<'scope> {
    /// A matrix over its bytes, quants and scales.
    ///
    /// # Panics
    /// When there are more or fewer bytes than such a matrix has.
    pub fn new(layout: PackedLayout, bytes: Region<'scope, u8>) -> Self {
        assert_eq!(bytes.len(), layout.n_bytes(), "bytes of {layout:?}");
        Self { layout, bytes }
    }

    /// Lends a matrix of the weight store.
    ///
    /// # Errors
    /// When its memory is not shared with the device.
    pub fn lend(scope: &'scope Scope<'scope, '_>, matrix: &PackedMatrix<'scope>) -> Result<Self> {
        Ok(Self::new(matrix.layout(), scope.lend(matrix.bytes())?))
    }

    /// Rows: features of the output.
    pub fn rows(&self) -> usize {
        self.layout.rows()
    }

    /// Columns: features of the input.
    pub fn cols(&self) -> usize {
        self.layout.cols()
    }
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It takes the place of what was there.
    Replace,
    /// It is added to what is there, as a branch to the residual stream.
    Add,
}

/// `out = W x + b`, or `out += W x + b`, for every token of `x`; `out` is `[token][rows]`.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn matmul(
    scope: &Scope<'_, '_>,
    weights: &PackedWeights<'_>,
    bias: Option<&Region<'_, f32>>,
    x: &Quantized<'_>,
    output: Output,
    out: &RegionMut<'_, f32>,
) -> Result<()> {
    let (rows, tokens) = (weights.rows(), x.tokens());
    assert_eq!(weights.cols(), x.cols(), "columns of weights and activations");
    assert_eq!(out.len(), tokens * rows, "output of {tokens} tokens x {rows}");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), rows, "matmul bias");
    }
    let planes = x.planes();
    let few = tokens <= FEW_TOKENS;
    let most = TEAM_ROWS / planes;
    // Few are filled up to a power of two: each number would be a program of its own.
    let team_tokens = if few { tokens.next_power_of_two().min(most) } else { most };
    let (tiles, blocks) = (weights.layout.tiles(), tokens.div_ceil(team_tokens));
    let defines =
        [("BITS", bits(weights.layout.kind())), ("PLANES", planes), ("TOKENS", team_tokens)];
    let (name, global) = if few {
        ("matvec", [tiles * GROUP, blocks, 1])
    } else {
        ("matmul", [tiles.div_ceil(SIDE) * GROUP, blocks.div_ceil(SIDE), 1])
    };
    let work = Work { source: SOURCE, name, defines: &defines, global, local: LOCAL };
    let (values, scales, offsets) = x.parts();
    let flags =
        HAS_BIAS * usize::from(bias.is_some()) + ADD_TO * usize::from(output == Output::Add);
    // Something must be passed for a bias that is not there; it is not read.
    let bias = bias.map_or_else(|| (&**scales).into(), Into::into);
    // SAFETY: the weights are those of their layout, which the kernel computes from `rows` and blocks; activations,
    // bias and output have been checked against it above.
    unsafe {
        scope.launch(
            work,
            &[
                (&weights.bytes).into(),
                rows.into(),
                weights.layout.blocks().into(),
                bias,
                values.into(),
                scales.into(),
                offsets.into(),
                tokens.into(),
                out.into(),
                flags.into(),
            ],
        )
    }
}

/// Bits of a quant.
const fn bits(kind: PackedType) -> usize {
    match kind {
        PackedType::Q4_0 => 4,
        PackedType::Q8_0 => 8,
    }
}

const _: () = assert!(SIDE * SIDE * LANES == GROUP, "a group is as many teams as its square has");
