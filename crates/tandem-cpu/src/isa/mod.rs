//! Instruction sets, and the inner loops that each of them implements.
//!
//! The operations in [`crate::ops`] check shapes, cut the work and share it out; what is left are a few loops
//! over numbers: [`Kernels`] on floats, [`PackedKernels`] on packed weights and 8-bit activations, and
//! [`AttentionKernels`] on keys and values. An instruction set that has no faster way for one of them calls that of a
//! lesser one. A new instruction set is a new
//! implementation and a new line in [`Isa`]; the conformance suite then runs against it.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod generic;
mod lanes;
mod packed;

use std::fmt;

use tandem_formats::DType;

pub(crate) use attention::{AttentionKernels, KEY_STEP, QUERIES, Running, SCORES_STEP};
pub(crate) use packed::{PackedKernels, TileSums, Tiles, WIDE_BYTES};

/// Instruction sets that the operations are written for, the slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, for every machine.
    Generic,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// That with AVX-VNNI, which products with packed weights use.
    AvxVnni,
    /// That with AVX-512 and its VNNI, which products with packed weights and attention use.
    Avx512,
}

impl Isa {
    /// Every instruction set, the slowest first.
    pub const ALL: [Self; 4] = [Self::Generic, Self::Avx2, Self::AvxVnni, Self::Avx512];

    /// The best instruction set of this machine.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Self::Generic)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        self.loops().is_some()
    }

    /// The name users type, as in `avx2`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
        }
    }

    /// The inner loops, if this machine has the instruction set.
    pub(crate) fn loops(self) -> Option<Loops> {
        match self {
            Self::Generic => Some(GENERIC),
            #[cfg(target_arch = "x86_64")]
            _ => x86_64(self),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }
}

/// The inner loops of an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Loops {
    /// Those on floats and on weights as they are in files.
    pub(crate) kernels: &'static dyn Kernels,
    /// Those on packed weights.
    pub(crate) packed: &'static dyn PackedKernels,
    /// Those on keys and values.
    pub(crate) attention: &'static dyn AttentionKernels,
}

/// What every machine has.
pub(crate) const GENERIC: Loops =
    Loops { kernels: &generic::Generic, packed: &packed::Generic, attention: &attention::Generic };

/// The inner loops of x86-64 machines. Of AVX-512 and VNNI only products with packed weights and attention make use; all
/// else is bound by memory, or seldom.
#[cfg(target_arch = "x86_64")]
fn x86_64(isa: Isa) -> Option<Loops> {
    use std::sync::OnceLock;

    static AVX2: OnceLock<Option<avx2::Avx2>> = OnceLock::new();
    static PACKED_AVX2: OnceLock<Option<packed::Avx2>> = OnceLock::new();
    static PACKED_AVXVNNI: OnceLock<Option<packed::AvxVnni>> = OnceLock::new();
    static PACKED_AVX512: OnceLock<Option<packed::Avx512>> = OnceLock::new();
    static ATTENTION_AVX2: OnceLock<Option<attention::Avx2>> = OnceLock::new();
    static ATTENTION_AVX512: OnceLock<Option<attention::Avx512>> = OnceLock::new();
    let packed: &'static dyn PackedKernels = match isa {
        Isa::Generic => &packed::Generic,
        Isa::Avx2 => PACKED_AVX2.get_or_init(packed::Avx2::new).as_ref()?,
        Isa::AvxVnni => PACKED_AVXVNNI.get_or_init(packed::AvxVnni::new).as_ref()?,
        Isa::Avx512 => PACKED_AVX512.get_or_init(packed::Avx512::new).as_ref()?,
    };
    let attention: &'static dyn AttentionKernels = match isa {
        Isa::Generic => &attention::Generic,
        Isa::Avx2 | Isa::AvxVnni => ATTENTION_AVX2.get_or_init(attention::Avx2::new).as_ref()?,
        Isa::Avx512 => ATTENTION_AVX512.get_or_init(attention::Avx512::new).as_ref()?,
    };
    Some(Loops { kernels: AVX2.get_or_init(avx2::Avx2::new).as_ref()?, packed, attention })
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The machine lacks an instruction set.
#[derive(Debug, thiserror::Error)]
#[error("this machine lacks the instruction set {0}")]
pub struct IsaUnavailable(
    /// The instruction set asked for.
    pub Isa,
);

/// Rows of equal length within a slice, at equal distances.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    data: &'a [f32],
    count: usize,
    len: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// `count` rows of `len` numbers, `stride` apart.
    pub(crate) fn new(data: &'a [f32], count: usize, len: usize, stride: usize) -> Self {
        let needed = if count == 0 { 0 } else { (count - 1) * stride + len };
        assert!(data.len() >= needed, "{} numbers for {count} rows that need {needed}", data.len());
        Self { data, count, len, stride }
    }

    /// `count` rows, one right after the other, that make up the whole slice.
    pub(crate) fn packed(data: &'a [f32], count: usize) -> Self {
        let len = data.len().checked_div(count).unwrap_or(0);
        assert_eq!(data.len(), count * len, "numbers of {count} rows");
        Self { data, count, len, stride: len }
    }

    /// One row.
    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..self.len]
    }
}

/// The inner loops of the operations. Each checks what its memory accesses rely on.
pub(crate) trait Kernels: Sync {
    /// Decodes `bytes`, whole blocks of `dtype`, into as many weights as `out` holds.
    fn decode(&self, dtype: DType, bytes: &[u8], out: &mut [f32]);

    /// The dot product of one encoded row of weights and `x`.
    fn dot(&self, dtype: DType, row: &[u8], x: &[f32]) -> f32;

    /// Adds to `out[j][i]` the dot product of row `i` of `a` and row `j` of `b`.
    ///
    /// The order of each sum depends on the rows' length alone, never on how many rows there are.
    fn dots(&self, a: Rows<'_>, b: Rows<'_>, out: &mut [f32]);

    /// `gate = gate / (1 + exp(-gate)) * up`.
    fn silu_mul(&self, gate: &mut [f32], up: &[f32]);

    /// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, with the biased variance.
    fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]);
}
