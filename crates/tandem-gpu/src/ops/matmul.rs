//! Products with packed weights.

use tandem_memory::{PackedLayout, PackedType};

use super::{LOCAL, Quantized, Uses};
use crate::error::Result;
use crate::expert_cache::ResidentExperts;
use crate::gpu::{Gpu, GpuVec, Region, RegionMut, Scope, Work};
use crate::path::{GROUP, LANES};
use crate::program::Source;

pub(crate) const MATMUL: Source =
    Source { file: "matmul_packed.cl", text: include_str!("../../kernels/matmul_packed.cl") };
/// Up to so many tokens the columns of a tile are shared out, since there are too few tiles to keep a device busy.
const FEW_TOKENS: usize = 8;
/// Tokens of a prompt's batch.
const PROMPT: usize = 256;
/// Tiles, and blocks of tokens, of a work-group.
const SIDE: usize = 4;

/// Flags of the kernels, as in their source.
pub(super) const HAS_BIAS: usize = 1;
pub(super) const ADD_TO: usize = 2;
pub(super) const SELECT: usize = 4;

/// A packed matrix that is lent to a device.
#[derive(Clone, Debug)]
pub struct PackedWeights<'scope> {
    layout: PackedLayout,
    /// Those that are used, from the first on.
    rows: usize,
    bytes: Region<'scope, u8>,
}

impl<'scope> PackedWeights<'scope> {
    /// A matrix over its bytes, quants and scales.
    ///
    /// # Panics
    /// When there are more or fewer bytes than such a matrix has.
    pub fn new(layout: PackedLayout, bytes: Region<'scope, u8>) -> Self {
        assert_eq!(bytes.len(), layout.n_bytes(), "bytes of {layout:?}");
        Self { layout, rows: layout.rows(), bytes }
    }

    /// The first `rows` rows, as a matrix of its own.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn first_rows(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "{rows} rows of {}", self.rows);
        Self { rows, ..self }
    }

    /// Encoding.
    pub(super) fn kind(&self) -> PackedType {
        self.layout.kind()
    }

    /// Quants and scales.
    pub(super) fn bytes(&self) -> &Region<'scope, u8> {
        &self.bytes
    }

    /// Rows: features of the output.
    pub fn rows(&self) -> usize {
        self.rows
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

/// What a team takes of a product at a time.
#[derive(Clone, Copy, Debug)]
struct Cut {
    planes: usize,
    tokens: usize,
    tiles: usize,
    /// Whether the teams of a group share the columns of their tiles.
    columns_are_shared: bool,
}

impl Cut {
    /// For a product of so many rows and tokens. More than a few tokens are added up in the same order whatever their
    /// number, so that results do not depend on it.
    fn of(gpu: &Gpu, rows: usize, tokens: usize, planes: usize) -> Self {
        let (most_tokens, most_tiles) = gpu.path().team(planes);
        let few = tokens <= FEW_TOKENS;
        // Few are filled up to a power of two: each number would be a program of its own.
        let tokens = if few { tokens.next_power_of_two().min(most_tokens) } else { most_tokens };
        let units = gpu.device().info().compute_units as usize;
        let enough_tiles = !few || rows >= units * most_tiles * LANES;
        let tiles = if tokens == most_tokens && enough_tiles { most_tiles } else { 1 };
        let items = rows * PROMPT / (most_tokens * most_tiles);
        let columns_are_shared = few || items < units * gpu.path().items_of_unit();
        Self { planes, tokens, tiles, columns_are_shared }
    }

    /// For products of the uses of experts, of which each has so many on average; there may be twice as many.
    fn of_uses(gpu: &Gpu, average: usize, planes: usize) -> Self {
        let (most_tokens, most_tiles) = gpu.path().team(planes);
        let tokens = (2 * average).next_power_of_two().min(most_tokens);
        let tiles = if tokens == most_tokens { most_tiles } else { 1 };
        Self { planes, tokens, tiles, columns_are_shared: true }
    }

    /// What the kernels are compiled for.
    fn defines(self, kind: PackedType) -> [(&'static str, usize); 4] {
        let Self { planes, tokens, tiles, .. } = self;
        [("BITS", bits(kind)), ("PLANES", planes), ("TOKENS", tokens), ("TILES", tiles)]
    }
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
    let cut = Cut::of(scope.gpu(), rows, tokens, x.planes());
    let defines = cut.defines(weights.layout.kind());
    let (tiles, blocks) = (rows.div_ceil(LANES * cut.tiles), tokens.div_ceil(cut.tokens));
    let (name, global) = if cut.columns_are_shared {
        ("matvec", [tiles * GROUP, blocks, 1])
    } else {
        ("matmul", [tiles.div_ceil(SIDE) * GROUP, blocks.div_ceil(SIDE), 1])
    };
    let work = Work { source: MATMUL, name, defines: &defines, global, local: LOCAL };
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
                weights.layout.quant_bytes().into(),
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

/// Where the matrices of a layer's experts begin, in bytes from the start of what holds them all.
#[derive(Debug)]
pub struct ExpertStarts {
    end: u64,
    starts: GpuVec<u64>,
}

impl ExpertStarts {
    /// The starts, where the device can read them.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// When one is no multiple of 64.
    pub fn new(gpu: &Gpu, starts: &[u64]) -> Result<Self> {
        let aligned = starts.iter().all(|start| start.is_multiple_of(64));
        assert!(aligned, "matrices at {starts:?}");
        let end = starts.iter().copied().max().unwrap_or(0);
        Ok(Self { end, starts: gpu.upload(starts)? })
    }

    /// Holds matrices of so many bytes against what holds them.
    pub(super) fn check(&self, matrix_bytes: usize, bytes: &Region<'_, u8>) {
        let (end, size) = (self.end + matrix_bytes as u64, bytes.len() as u64);
        assert!(end <= size, "a matrix ends at {end} of {size} bytes");
    }

    pub(super) fn vec(&self) -> &GpuVec<u64> {
        &self.starts
    }
}

/// The matrices of all experts of a layer, of one shape and in one allocation.
#[derive(Clone, Debug)]
pub struct ExpertWeights<'scope> {
    layout: PackedLayout,
    /// Those of each that are used, from the first on.
    rows: usize,
    bytes: Region<'scope, u8>,
    starts: Region<'scope, u64>,
}

impl<'scope> ExpertWeights<'scope> {
    /// Matrices at their starts within `bytes`.
    ///
    /// # Errors
    /// When the starts belong to another device.
    ///
    /// # Panics
    /// When a matrix is not within `bytes`.
    pub fn new(
        scope: &'scope Scope<'scope, '_>,
        layout: PackedLayout,
        bytes: Region<'scope, u8>,
        starts: &'scope ExpertStarts,
    ) -> Result<Self> {
        starts.check(layout.n_bytes(), &bytes);
        Ok(Self { layout, rows: layout.rows(), bytes, starts: scope.vec(&starts.starts)? })
    }

    /// The first `rows` rows of each matrix.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn first_rows(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "{rows} rows of {}", self.rows);
        Self { rows, ..self }
    }

    /// Encoding.
    pub fn kind(&self) -> PackedType {
        self.layout.kind()
    }

    /// Rows of a matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a matrix.
    pub fn cols(&self) -> usize {
        self.layout.cols()
    }

    /// Gate (0), up (1) or down (2) matrices that a cache has on the device; only those it was asked for.
    ///
    /// # Panics
    /// When such a matrix has another size.
    pub fn resident(
        layout: PackedLayout,
        experts: &ResidentExperts<'scope>,
        matrix: usize,
    ) -> Self {
        assert_eq!(layout.n_bytes(), experts.matrix_bytes(matrix), "bytes of {layout:?}");
        let (bytes, starts) = experts.places(matrix);
        Self { layout, rows: layout.rows(), bytes, starts }
    }
}

/// What goes into experts' products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertInput {
    /// The activations of a use's token: gate and up projections.
    OfTokens,
    /// A use's own activations: down projections.
    OfUses,
}

/// `out = W x` for every use of an expert, with the expert's own matrix; `out` is `[use][rows]`.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn matmul_experts(
    scope: &Scope<'_, '_>,
    weights: &ExpertWeights<'_>,
    uses: &Uses<'_>,
    x: &Quantized<'_>,
    input: ExpertInput,
    out: &RegionMut<'_, f32>,
) -> Result<()> {
    let (layout, rows) = (weights.layout, weights.rows);
    let count = uses.tokens.len();
    let (tokens, planes) = (count / 2, x.planes());
    let expected = if input == ExpertInput::OfTokens { tokens } else { count };
    assert_eq!((layout.cols(), expected), (x.cols(), x.tokens()), "activations of experts");
    assert_eq!(weights.starts.len(), uses.n_experts(), "experts");
    assert_eq!(out.len(), count * rows, "output of {count} uses");
    let average = count.div_ceil(uses.n_experts());
    let cut = Cut::of_uses(scope.gpu(), average, planes);
    let defines = cut.defines(layout.kind());
    let tiles = rows.div_ceil(LANES * cut.tiles);
    let global = [tiles * GROUP, uses.n_experts(), (2 * average).div_ceil(cut.tokens)];
    let work = Work { source: MATMUL, name: "experts", defines: &defines, global, local: LOCAL };
    let (values, scales, offsets) = x.parts();
    let flags = SELECT * usize::from(input == ExpertInput::OfTokens);
    // SAFETY: every matrix is within its bytes; the kernel takes no use and no token beyond `count` and half of it, for
    // which there are activations and results.
    unsafe {
        scope.launch(
            work,
            &[
                (&weights.bytes).into(),
                (&weights.starts).into(),
                layout.quant_bytes().into(),
                rows.into(),
                layout.blocks().into(),
                (&uses.starts).into(),
                (&uses.tokens).into(),
                count.into(),
                values.into(),
                scales.into(),
                offsets.into(),
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
