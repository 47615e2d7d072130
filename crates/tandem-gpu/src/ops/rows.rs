//! Weights in rows, as in a file, in a float encoding: products with f32 activations, and the embedding table.

use tandem_formats::DType;
use tandem_memory::PackedType;

use super::matmul::{ADD_TO, HAS_BIAS, SELECT};
use super::{ExpertInput, ExpertStarts, LOCAL, Output, PackedWeights, Uses};
use crate::error::{GpuError, Result};
use crate::expert_cache::HeldExperts;
use crate::gpu::{Region, RegionMut, Scope, Work};
use crate::path::{GROUP, LANES};
use crate::program::Source;

pub(crate) const MATVEC_ROWS: Source =
    Source { file: "matvec_rows.cl", text: include_str!("../../kernels/matvec_rows.cl") };
pub(crate) const EMBEDDING: Source =
    Source { file: "embedding.cl", text: include_str!("../../kernels/embedding.cl") };
/// Tokens that a work-group takes at a time, at most.
const TOKENS: usize = 8;
/// Matrices of up to so many rows have a work-group for each: 16 at a time they would be too few for a device.
const FEW_ROWS: usize = 64;

/// A matrix of floats that is lent to a device.
#[derive(Clone, Debug)]
pub struct FloatWeights<'scope> {
    kind: usize,
    rows: usize,
    cols: usize,
    bytes: Region<'scope, u8>,
}

impl<'scope> FloatWeights<'scope> {
    /// A matrix over its bytes.
    ///
    /// # Errors
    /// When the encoding is none of f32, f16 and bf16.
    ///
    /// # Panics
    /// When there are more or fewer bytes than such a matrix has.
    pub fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: Region<'scope, u8>,
        scope: &Scope<'_, '_>,
    ) -> Result<Self> {
        let kind = kind_of(dtype, scope)?;
        let expected = matrix_bytes(dtype, rows, cols);
        assert_eq!(bytes.len(), expected, "bytes of a matrix of {rows} x {cols} {dtype}");
        Ok(Self { kind, rows, cols, bytes })
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

    /// Rows: features of the output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: features of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// Whether there are kernels for weights of this encoding in rows.
pub const fn has_float_kernels(dtype: DType) -> bool {
    kind_number(dtype).is_some()
}

/// The number by which the kernels know an encoding.
const fn kind_number(dtype: DType) -> Option<usize> {
    match dtype {
        DType::F32 => Some(32),
        DType::F16 => Some(16),
        DType::BF16 => Some(17),
        _ => None,
    }
}

fn kind_of(dtype: DType, scope: &Scope<'_, '_>) -> Result<usize> {
    kind_number(dtype).ok_or_else(|| GpuError::Missing {
        device: scope.gpu().device().info().full_name(),
        what: format!("kernels for {dtype}"),
    })
}

/// Bytes of a matrix of floats.
fn matrix_bytes(dtype: DType, rows: usize, cols: usize) -> usize {
    dtype.bytes_for(cols).map_or(0, |row| row * rows)
}

/// The matrices of all experts of a layer, of floats of one encoding and shape, in one allocation.
#[derive(Clone, Debug)]
pub struct FloatExperts<'scope> {
    kind: usize,
    rows: usize,
    cols: usize,
    bytes: Region<'scope, u8>,
    starts: Region<'scope, u64>,
}

impl<'scope> FloatExperts<'scope> {
    /// Gate (0), up (1) or down (2) matrices that a cache has on the device; only those it was asked for.
    ///
    /// # Errors
    /// When the encoding is none of f32, f16 and bf16.
    ///
    /// # Panics
    /// When the cache's matrices are smaller.
    pub fn resident(
        scope: &Scope<'_, '_>,
        (dtype, rows, cols): (DType, usize, usize),
        experts: &HeldExperts<'scope>,
        matrix: usize,
    ) -> Result<Self> {
        let kind = kind_of(dtype, scope)?;
        let expected = matrix_bytes(dtype, rows, cols);
        assert!(expected <= experts.matrix_bytes(matrix), "bytes of {rows} x {cols} {dtype}");
        let (bytes, starts) = experts.places(matrix);
        Ok(Self { kind, rows, cols, bytes, starts })
    }

    /// Matrices at their starts within `bytes`.
    ///
    /// # Errors
    /// When the encoding is none of f32, f16 and bf16, or the starts belong to another device.
    ///
    /// # Panics
    /// When a matrix is not within `bytes`.
    pub fn new(
        scope: &'scope Scope<'scope, '_>,
        (dtype, rows, cols): (DType, usize, usize),
        bytes: Region<'scope, u8>,
        starts: &'scope ExpertStarts,
    ) -> Result<Self> {
        let kind = kind_of(dtype, scope)?;
        starts.check(matrix_bytes(dtype, rows, cols), &bytes);
        Ok(Self { kind, rows, cols, bytes, starts: scope.vec(starts.vec())? })
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

    /// Rows of a matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// `out = W x` for every use of an expert, with the expert's own matrix; `out` is `[use][rows]`, and `x` is
/// `[token][cols]` or `[use][cols]`.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn matmul_experts_rows(
    scope: &Scope<'_, '_>,
    weights: &FloatExperts<'_>,
    uses: &Uses<'_>,
    x: &Region<'_, f32>,
    input: ExpertInput,
    out: &RegionMut<'_, f32>,
) -> Result<()> {
    let FloatExperts { kind, rows, cols, ref bytes, ref starts } = *weights;
    let count = uses.tokens.len();
    let tokens = count / 2;
    let expected = if input == ExpertInput::OfTokens { tokens } else { count };
    assert_eq!(x.len(), expected * cols, "activations of experts");
    assert_eq!(starts.len(), uses.n_experts(), "experts");
    assert_eq!(out.len(), uses.results.len() * rows, "output of {:?}", uses.results);
    // A token uses an expert once, so no expert has more uses than there are tokens.
    let group_tokens = tokens.next_power_of_two().min(TOKENS);
    let defines = [("KIND", kind), ("TOKENS", group_tokens)];
    let blocks = tokens.div_ceil(group_tokens);
    let global = [rows.div_ceil(GROUP / LANES) * GROUP, uses.n_experts(), blocks];
    let source = MATVEC_ROWS;
    let work = Work { source, name: "experts_rows", defines: &defines, global, local: LOCAL };
    let flags = SELECT * usize::from(input == ExpertInput::OfTokens);
    // SAFETY: every matrix is within its bytes; the kernel takes no use and no token beyond `count` and half of it, for
    // which there are activations and results.
    unsafe {
        scope.launch(
            work,
            &[
                bytes.into(),
                starts.into(),
                rows.into(),
                cols.into(),
                (&uses.starts).into(),
                (&uses.tokens).into(),
                count.into(),
                uses.wanted.into(),
                uses.results.start.into(),
                uses.results.len().into(),
                x.into(),
                out.into(),
                flags.into(),
            ],
        )
    }
}

/// `out = W x + b`, or `out += W x + b`, for every token of `x`, `[token][cols]`; `out` is `[token][rows]`.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn matmul_rows(
    scope: &Scope<'_, '_>,
    weights: &FloatWeights<'_>,
    bias: Option<&Region<'_, f32>>,
    x: &Region<'_, f32>,
    output: Output,
    out: &RegionMut<'_, f32>,
) -> Result<()> {
    let FloatWeights { kind, rows, cols, ref bytes } = *weights;
    let tokens = super::tokens("matmul input", x.len(), cols);
    assert_eq!(out.len(), tokens * rows, "output of {tokens} tokens x {rows}");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), rows, "matmul bias");
    }
    let group_tokens = tokens.next_power_of_two().min(TOKENS);
    let flags =
        HAS_BIAS * usize::from(bias.is_some()) + ADD_TO * usize::from(output == Output::Add);
    let defines = [("KIND", kind), ("TOKENS", group_tokens)];
    let few = rows <= FEW_ROWS;
    let (name, groups) =
        if few { ("matvec_row", rows) } else { ("matvec_rows", rows.div_ceil(GROUP / LANES)) };
    let global = [groups * GROUP, tokens.div_ceil(group_tokens), 1];
    let work = Work { source: MATVEC_ROWS, name, defines: &defines, global, local: LOCAL };
    // Something must be passed for a bias that is not there; it is not read.
    let bias = bias.map_or_else(|| x.into(), Into::into);
    // SAFETY: the matrix is of `rows x cols` as the kernel is told; the others have been checked against it.
    unsafe {
        scope.launch(
            work,
            &[
                bytes.into(),
                rows.into(),
                cols.into(),
                bias,
                x.into(),
                tokens.into(),
                out.into(),
                flags.into(),
            ],
        )
    }
}

/// An embedding table.
#[derive(Clone, Debug)]
pub enum Table<'a, 'scope> {
    /// Packed.
    Packed(&'a PackedWeights<'scope>),
    /// In rows.
    Rows(&'a FloatWeights<'scope>),
}

/// The rows of the table that `ids` name, in f32; `out` is `[token][cols]`. An id beyond the table gives NaN.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together.
pub fn embedding(
    scope: &Scope<'_, '_>,
    table: &Table<'_, '_>,
    ids: &Region<'_, u32>,
    out: &RegionMut<'_, f32>,
) -> Result<()> {
    let (kind, rows, cols, bytes) = match table {
        Table::Rows(FloatWeights { kind, rows, cols, bytes }) => (*kind, *rows, *cols, bytes),
        Table::Packed(packed) => {
            let kind = if packed.kind() == PackedType::Q4_0 { 4 } else { 8 };
            (kind, packed.rows(), packed.cols(), packed.bytes())
        }
    };
    assert_eq!(out.len(), ids.len() * cols, "rows of the embedding");
    let defines = [("KIND", kind), ("COLS", cols)];
    let global = [out.len().next_multiple_of(GROUP), 1, 1];
    let work =
        Work { source: EMBEDDING, name: "embedding", defines: &defines, global, local: LOCAL };
    // SAFETY: the table is of `rows x COLS`, and the kernel looks at no row beyond; `out` has a row for each id.
    unsafe {
        scope.launch(work, &[bytes.into(), rows.into(), ids.into(), ids.len().into(), out.into()])
    }
}
