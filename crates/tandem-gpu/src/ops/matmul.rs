//! Products with packed weights.

use tandem_memory::{PackedLayout, PackedType};

use super::{Quantized, Uses};
use crate::error::Result;
use crate::expert_cache::HeldExperts;
use crate::gpu::{Arg, Gpu, GpuVec, Region, RegionMut, Scope, Work};
use crate::path::{GROUP, LANES, Path};
use crate::program::Source;

pub(crate) const MATMUL: Source = Source {
    file: "matmul_packed.cl",
    text: concat!(
        include_str!("../../kernels/dots.cl"),
        include_str!("../../kernels/ptx.cl"),
        include_str!("../../kernels/matmul_packed.cl")
    ),
};
/// Up to so many tokens the columns of a tile are shared out, since there are too few tiles to keep a device busy.
const FEW_TOKENS: usize = 8;
/// Work-groups of a compute unit from which on tensor cores pay for few tokens: those of an lm_head.
const GROUPS_OF_UNIT: usize = 4;
/// Tokens of a prompt's batch.
const PROMPT: usize = 256;
/// Tiles, and blocks of tokens, of a work-group.
const SIDE: usize = 4;
/// Matrices that one launch takes, at most.
const MATRICES: usize = 3;
/// The same of experts'.
const EXPERT_MATRICES: usize = 2;

/// Blocks of rows that are long.
const LONG_ROW: usize = 64;

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
    /// Whether tensor cores multiply.
    tensor: bool,
    /// Whether those add up in the order of a single token.
    few: bool,
}

impl Cut {
    /// For a product of so many rows and tokens. More than a few tokens are added up in the same order whatever their
    /// number, so that results do not depend on it.
    fn of(gpu: &Gpu, rows: usize, tokens: usize, planes: usize) -> Self {
        let units = gpu.device().info().compute_units as usize;
        if gpu.path().has_tensor_cores(gpu.device().info()) {
            if tokens > FEW_TOKENS {
                return Self::of_tensor_cores(2, planes);
            }
            let cut = Self { few: true, ..Self::of_tensor_cores(1, planes) };
            // Smaller ones are read in less time than it takes to begin.
            if tokens > 2 && planes == 1 && rows >= GROUPS_OF_UNIT * units * cut.tiles * LANES {
                return cut;
            }
        }
        let (most_tokens, most_tiles) = gpu.path().team(planes);
        let few = tokens <= FEW_TOKENS;
        // Few are filled up to a power of two: each number would be a program of its own.
        let tokens = if few { tokens.next_power_of_two().min(most_tokens) } else { most_tokens };
        let enough_tiles = !few || rows >= units * most_tiles * LANES;
        let tiles = if tokens == most_tokens && enough_tiles { most_tiles } else { 1 };
        let items = rows * PROMPT / (most_tokens * most_tiles);
        let columns_are_shared =
            few || gpu.path() == Path::Vector || items < units * gpu.path().items_of_unit();
        Self { planes, tokens, tiles, columns_are_shared, tensor: false, few: false }
    }

    /// For tensor cores, with so many times 8 rows of activations.
    fn of_tensor_cores(eights: usize, planes: usize) -> Self {
        Self {
            planes,
            tokens: eights * 8 / planes,
            tiles: 2 * eights,
            columns_are_shared: true,
            tensor: true,
            few: false,
        }
    }

    /// For products of the uses that so many tokens make of experts, of which each has so many on average; there may be
    /// twice as many.
    fn of_uses(
        gpu: &Gpu,
        layout: PackedLayout,
        tokens: usize,
        average: usize,
        planes: usize,
    ) -> Self {
        let has_tensor_cores = gpu.path().has_tensor_cores(gpu.device().info());
        if has_tensor_cores && tokens > FEW_TOKENS {
            return Self::of_tensor_cores(if average * planes <= 8 { 1 } else { 2 }, planes);
        }
        let (most_tokens, most_tiles) = gpu.path().team(planes);
        // There, long rows in 4 bits take longer to unpack and multiply than to read, even for a second use that is none.
        let is_long = layout.kind() == PackedType::Q4_0 && layout.blocks() >= LONG_ROW;
        let one = has_tensor_cores && is_long && average == 1;
        let tokens = if one { 1 } else { (2 * average).next_power_of_two().min(most_tokens) };
        let tiles = if tokens == most_tokens { most_tiles } else { 1 };
        Self { planes, tokens, tiles, columns_are_shared: true, tensor: false, few: false }
    }

    /// What the kernels are compiled for.
    fn defines(self, kind: PackedType, products: usize) -> [(&'static str, usize); 7] {
        let Self { planes, tokens, tiles, .. } = self;
        [
            ("BITS", bits(kind)),
            ("PLANES", planes),
            ("TOKENS", tokens),
            ("TILES", tiles),
            ("PRODUCTS", products),
            ("TENSOR", usize::from(self.tensor)),
            ("FEW", usize::from(self.few)),
        ]
    }

    /// Tiles of a matrix, as teams take them.
    fn tiles_of(self, rows: usize) -> usize {
        rows.div_ceil(LANES * self.tiles)
    }

    /// Whether a launch may have several matrices.
    fn takes_several(self, gpu: &Gpu) -> bool {
        gpu.path().takes_several(self.tokens * self.planes * self.tiles)
    }

    /// How many of so many blocks of tokens are taken side by side. Where a team is one work-item it takes all of them,
    /// and the weights come from memory once.
    fn blocks_of(self, gpu: &Gpu, tokens: usize) -> usize {
        if gpu.path() == Path::Vector { 1 } else { tokens.div_ceil(self.tokens) }
    }
}

/// A product of a matrix with the tokens of an input: `out = W x + b`; `out` is `[token][rows]`.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a, 'scope> {
    /// `W`.
    pub weights: &'a PackedWeights<'scope>,
    /// `b`, if there is one.
    pub bias: Option<&'a Region<'scope, f32>>,
    /// Where it goes.
    pub out: &'a RegionMut<'scope, f32>,
}

/// `out = W x + b`, or `out += W x + b`, for every token of `x`; `out` is `[token][rows]`.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn matmul<'scope>(
    scope: &Scope<'_, '_>,
    weights: &PackedWeights<'scope>,
    bias: Option<&Region<'scope, f32>>,
    x: &Quantized<'_>,
    output: Output,
    out: &RegionMut<'scope, f32>,
) -> Result<()> {
    matmul_all(scope, &[Dense { weights, bias, out }], x, output)
}

/// Several products of one input, in as few launches as there can be: of few tokens with small matrices a launch takes
/// longer than the product.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn matmul_all(
    scope: &Scope<'_, '_>,
    products: &[Dense<'_, '_>],
    x: &Quantized<'_>,
    output: Output,
) -> Result<()> {
    // What is of the same kind, with biases or without, goes together.
    let alike = |a: &Dense<'_, '_>, b: &Dense<'_, '_>| {
        a.weights.kind() == b.weights.kind() && a.bias.is_some() == b.bias.is_some()
    };
    products
        .chunk_by(alike)
        .flat_map(|chunk| chunk.chunks(MATRICES))
        .try_for_each(|products| launch(scope, products, x, output))
}

/// The products of some matrices that are alike.
fn launch(
    scope: &Scope<'_, '_>,
    products: &[Dense<'_, '_>],
    x: &Quantized<'_>,
    output: Output,
) -> Result<()> {
    let (gpu, tokens) = (scope.gpu(), x.tokens());
    let rows = products.iter().map(|product| product.weights.rows()).sum();
    let cut = Cut::of(gpu, rows, tokens, x.planes());
    if products.len() > 1 && !(cut.columns_are_shared && cut.takes_several(gpu)) {
        // There is enough to do for each.
        return products.chunks(1).try_for_each(|product| launch(scope, product, x, output));
    }
    let Some(Dense { weights, bias, .. }) = products.first() else { return Ok(()) };
    let flags =
        HAS_BIAS * usize::from(bias.is_some()) + ADD_TO * usize::from(output == Output::Add);
    let defines = cut.defines(weights.kind(), products.len());
    let tiles: usize = products.iter().map(|product| cut.tiles_of(product.weights.rows())).sum();
    let group = gpu.path().matmul_group();
    let (name, global) = if cut.columns_are_shared {
        ("matvec", [tiles * group, cut.blocks_of(gpu, tokens), 1])
    } else {
        let blocks = tokens.div_ceil(cut.tokens);
        ("matmul", [tiles.div_ceil(SIDE) * group, blocks.div_ceil(SIDE), 1])
    };
    let work = Work { source: MATMUL, name, defines: &defines, global, local: [group, 1, 1] };
    let mut args: Vec<Arg<'_>> = Vec::new();
    for Dense { weights, bias, out } in products {
        let rows = weights.rows();
        assert_eq!(weights.cols(), x.cols(), "columns of weights and activations");
        assert_eq!(out.len(), tokens * rows, "output of {tokens} tokens x {rows}");
        if let Some(bias) = bias {
            assert_eq!(bias.len(), rows, "matmul bias");
        }
        // Something must be passed for a bias that is not there; it is not read.
        let bias: Arg<'_> = bias.map_or_else(|| x.blocks().into(), Into::into);
        let scales = weights.layout.quant_bytes();
        let these: [Arg<'_>; 5] =
            [(&weights.bytes).into(), scales.into(), rows.into(), bias, (*out).into()];
        args.extend(these);
    }
    let blocks = weights.layout.blocks();
    let rest: [Arg<'_>; 4] = [blocks.into(), x.blocks().into(), tokens.into(), flags.into()];
    args.extend(rest);
    // SAFETY: the weights are those of their layouts, which the kernel computes from rows and blocks; activations,
    // biases and outputs have been checked against them above.
    unsafe { scope.launch(work, &args) }
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
    /// When the cache's matrices are smaller.
    pub fn resident(layout: PackedLayout, experts: &HeldExperts<'scope>, matrix: usize) -> Self {
        assert!(layout.n_bytes() <= experts.matrix_bytes(matrix), "bytes of {layout:?}");
        let (bytes, starts) = experts.places(matrix);
        Self { layout, rows: layout.rows(), bytes, starts }
    }

    /// Whether one launch can take the products of both: they differ in nothing but where matrices begin.
    fn is_like(&self, other: &Self) -> bool {
        let memory = self.bytes.is_same(&other.bytes);
        memory && self.layout == other.layout && self.rows == other.rows
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

/// `out = W x` for every use of an expert, with the expert's own matrices; each `out` is `[use][rows]`. Matrices that are
/// alike, as gate and up, take one launch.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn matmul_experts(
    scope: &Scope<'_, '_>,
    products: &[(&ExpertWeights<'_>, &RegionMut<'_, f32>)],
    uses: &Uses<'_>,
    x: &Quantized<'_>,
    input: ExpertInput,
) -> Result<()> {
    products
        .chunk_by(|(a, _), (b, _)| a.is_like(b))
        .flat_map(|chunk| chunk.chunks(EXPERT_MATRICES))
        .try_for_each(|products| launch_experts(scope, products, uses, x, input))
}

/// The products of experts' matrices that are alike.
fn launch_experts(
    scope: &Scope<'_, '_>,
    products: &[(&ExpertWeights<'_>, &RegionMut<'_, f32>)],
    uses: &Uses<'_>,
    x: &Quantized<'_>,
    input: ExpertInput,
) -> Result<()> {
    let Some((weights, _)) = products.first() else { return Ok(()) };
    let (layout, rows, gpu) = (weights.layout, weights.rows, scope.gpu());
    let count = uses.tokens.len();
    let (tokens, planes) = (count / 2, x.planes());
    let expected = if input == ExpertInput::OfTokens { tokens } else { count };
    assert_eq!((layout.cols(), expected), (x.cols(), x.tokens()), "activations of experts");
    let average = count.div_ceil(uses.n_experts());
    let cut = Cut::of_uses(gpu, layout, tokens, average, planes);
    if products.len() > 1 && !cut.takes_several(gpu) {
        let mut each = products.chunks(1);
        return each.try_for_each(|product| launch_experts(scope, product, uses, x, input));
    }
    let defines = cut.defines(layout.kind(), products.len());
    let group = gpu.path().matmul_group();
    let tiles = cut.tiles_of(rows) * products.len();
    let global = [tiles * group, uses.n_experts(), cut.blocks_of(gpu, 2 * average)];
    let local = [group, 1, 1];
    let work = Work { source: MATMUL, name: "experts", defines: &defines, global, local };
    let flags = SELECT * usize::from(input == ExpertInput::OfTokens);
    let mut args: Vec<Arg<'_>> = vec![(&weights.bytes).into()];
    for (weights, out) in products {
        assert_eq!(weights.starts.len(), uses.n_experts(), "experts");
        assert_eq!(out.len(), uses.results.len() * rows, "output of {:?}", uses.results);
        let these: [Arg<'_>; 2] = [(&weights.starts).into(), (*out).into()];
        args.extend(these);
    }
    let rest: [Arg<'_>; 11] = [
        layout.quant_bytes().into(),
        rows.into(),
        layout.blocks().into(),
        (&uses.starts).into(),
        (&uses.tokens).into(),
        count.into(),
        uses.wanted.into(),
        uses.results.start.into(),
        uses.results.len().into(),
        x.blocks().into(),
        flags.into(),
    ];
    args.extend(rest);
    // SAFETY: every matrix is within its bytes; the kernel takes no use and no token beyond `count` and half of it, for
    // which there are activations and results.
    unsafe { scope.launch(work, &args) }
}

/// Bits of a quant.
const fn bits(kind: PackedType) -> usize {
    match kind {
        PackedType::Q4_0 => 4,
        PackedType::Q8_0 => 8,
    }
}

const _: () = assert!(SIDE * SIDE * LANES == GROUP, "a group is as many teams as its square has");
