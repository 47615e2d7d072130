//! The router's choices, and what follows from them: who uses which expert, and the sum of the experts' results.

use std::ops::Range;

use super::LOCAL;
use crate::error::Result;
use crate::gpu::{Gpu, GpuVec, Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

pub(crate) const ROUTER: Source =
    Source { file: "router.cl", text: include_str!("../../kernels/router.cl") };
pub(crate) const GROUPING: Source =
    Source { file: "group_experts.cl", text: include_str!("../../kernels/group_experts.cl") };
pub(crate) const GATHER: Source =
    Source { file: "gather.cl", text: include_str!("../../kernels/gather.cl") };
/// Experts of a token.
const PER_TOKEN: usize = tandem_model::config::EXPERTS_PER_TOKEN;

/// `tandem_model::router::sparsemixer` for every token of `logits`, `[token][experts]`: the chosen experts and their
/// weights, each `[token][2]`.
///
/// # Errors
/// When the driver fails.
///
/// # Panics
/// When the shapes do not fit together, or there are fewer than two experts.
pub fn sparsemixer(
    scope: &Scope<'_, '_>,
    logits: &Region<'_, f32>,
    n_experts: usize,
    jitter: f32,
    chosen: &RegionMut<'_, u32>,
    weights: &RegionMut<'_, f32>,
) -> Result<()> {
    assert!(n_experts >= PER_TOKEN, "{n_experts} experts");
    let tokens = super::tokens("router logits", logits.len(), n_experts);
    let expected = PER_TOKEN * tokens;
    assert_eq!((chosen.len(), weights.len()), (expected, expected), "choices of {tokens} tokens");
    let (defines, global) = ([("EXPERTS", n_experts)], [tokens.next_multiple_of(GROUP), 1, 1]);
    let work =
        Work { source: ROUTER, name: "sparsemixer", defines: &defines, global, local: LOCAL };
    // SAFETY: a work-item has a token, of which logits and results are there.
    unsafe {
        scope.launch(
            work,
            &[logits.into(), tokens.into(), jitter.into(), chosen.into(), weights.into()],
        )
    }
}

/// Room for a batch's uses of experts. A *use* is a token's choice of an expert; every token has two.
#[derive(Debug)]
pub struct UsesVec {
    starts: GpuVec<u32>,
    tokens: GpuVec<u32>,
    weights: GpuVec<f32>,
    places: GpuVec<u32>,
}

/// A batch's uses of experts, ordered by expert and then by token.
#[derive(Clone, Debug)]
pub struct Uses<'scope> {
    pub(super) starts: RegionMut<'scope, u32>,
    pub(super) tokens: RegionMut<'scope, u32>,
    weights: RegionMut<'scope, f32>,
    places: RegionMut<'scope, u32>,
    /// Of the first 64 experts a bit for each whose uses are computed.
    pub(super) wanted: u64,
    /// Uses whose results there is room for.
    pub(super) results: Range<usize>,
}

/// A batch's uses, on the CPU.
#[derive(Clone, Debug, PartialEq)]
pub struct UsesOnCpu {
    /// Where each expert's uses begin, and where the last one's end.
    pub starts: Vec<u32>,
    /// Token of each use.
    pub tokens: Vec<u32>,
    /// Weight of each use.
    pub weights: Vec<f32>,
    /// Which uses a token's two are, `[token][2]`.
    pub places: Vec<u32>,
}

impl UsesVec {
    /// Room for a batch of `tokens`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(gpu: &Gpu, n_experts: usize, tokens: usize) -> Result<Self> {
        Ok(Self {
            starts: gpu.zeros(n_experts + 1)?,
            tokens: gpu.zeros(PER_TOKEN * tokens)?,
            weights: gpu.zeros(PER_TOKEN * tokens)?,
            places: gpu.zeros(PER_TOKEN * tokens)?,
        })
    }

    /// What the device has put there, with whatever an earlier, larger batch has left behind it.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn read(&self, gpu: &Gpu) -> Result<UsesOnCpu> {
        Ok(UsesOnCpu {
            starts: gpu.read(&self.starts)?,
            tokens: gpu.read(&self.tokens)?,
            weights: gpu.read(&self.weights)?,
            places: gpu.read(&self.places)?,
        })
    }

    /// Lends the room for the first `tokens` of a batch.
    ///
    /// # Errors
    /// When the room belongs to another device.
    ///
    /// # Panics
    /// When it is too small.
    pub fn lend<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
        tokens: usize,
    ) -> Result<Uses<'scope>> {
        let uses = PER_TOKEN * tokens;
        Ok(Uses {
            starts: scope.vec_mut(&mut self.starts)?,
            tokens: scope.vec_mut(&mut self.tokens)?.slice_mut(0..uses),
            weights: scope.vec_mut(&mut self.weights)?.slice_mut(0..uses),
            places: scope.vec_mut(&mut self.places)?.slice_mut(0..uses),
            wanted: u64::MAX,
            results: 0..uses,
        })
    }
}

impl<'scope> Uses<'scope> {
    /// Over memory of the caller's: `starts` has one more number than there are experts, `tokens` and `weights` one for
    /// each use, `places` are `[token][2]`. Kernels keep to them whatever they hold.
    ///
    /// # Panics
    /// When the lengths do not fit together.
    pub fn new(
        starts: RegionMut<'scope, u32>,
        tokens: RegionMut<'scope, u32>,
        weights: RegionMut<'scope, f32>,
        places: RegionMut<'scope, u32>,
    ) -> Self {
        let uses = tokens.len();
        assert!(starts.len() > 1 && uses.is_multiple_of(PER_TOKEN), "room for {uses} uses");
        assert_eq!((weights.len(), places.len()), (uses, uses), "room for {uses} uses");
        Self { starts, tokens, weights, places, wanted: u64::MAX, results: 0..uses }
    }

    /// Only the uses of some experts, in the place that they have among all; none where there are more than 64 experts,
    /// which kernels cannot tell apart.
    #[must_use]
    pub fn of_experts(&self, experts: &[usize]) -> Option<Self> {
        let wanted = experts.iter().fold(0, |wanted, expert| wanted | 1 << expert);
        (self.n_experts() <= u64::BITS as usize).then(|| Self { wanted, ..self.clone() })
    }

    /// The same uses, of which only these have room for their results: those of the experts that are computed.
    ///
    /// # Panics
    /// When there are fewer uses.
    #[must_use]
    pub fn with_results(&self, results: Range<usize>) -> Self {
        assert!(results.start <= results.end && results.end <= self.len(), "{results:?} of uses");
        Self { results, ..self.clone() }
    }

    /// Uses.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Uses whose results there is room for.
    pub fn n_results(&self) -> usize {
        self.results.len()
    }

    /// Experts.
    pub fn n_experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// Orders the choices and weights of [`sparsemixer`] by expert: counts, adds up, scatters.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there are more or fewer choices than room was lent for.
    pub fn group(
        &self,
        scope: &Scope<'_, '_>,
        chosen: &Region<'_, u32>,
        weights: &Region<'_, f32>,
    ) -> Result<()> {
        let uses = self.tokens.len();
        assert_eq!((chosen.len(), weights.len()), (uses, uses), "choices to group");
        let defines = [("EXPERTS", self.n_experts())];
        let global = [GROUP, 1, 1];
        let work = Work {
            source: GROUPING,
            name: "group_experts",
            defines: &defines,
            global,
            local: LOCAL,
        };
        // SAFETY: choices and uses are two for each token; a choice that is no expert's has no place, so the kernel
        // writes no more uses than there are.
        unsafe {
            scope.launch(
                work,
                &[
                    chosen.into(),
                    weights.into(),
                    (uses / PER_TOKEN).into(),
                    (&self.starts).into(),
                    (&self.tokens).into(),
                    (&self.weights).into(),
                    (&self.places).into(),
                ],
            )
        }
    }

    /// `x += weight * result` for the two uses of every token, in the order of experts; `results` is `[use][cols]`
    /// and `x` is `[token][cols]`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the shapes do not fit together.
    pub fn gather(
        &self,
        scope: &Scope<'_, '_>,
        results: &Region<'_, f32>,
        cols: usize,
        x: &RegionMut<'_, f32>,
    ) -> Result<()> {
        let tokens = super::tokens("experts' results", x.len(), cols);
        let uses = self.tokens.len();
        assert_eq!((uses, results.len()), (PER_TOKEN * tokens, uses * cols), "experts' results");
        let defines = [("COLS", cols)];
        let global = [x.len().next_multiple_of(GROUP), 1, 1];
        let work = Work { source: GATHER, name: "gather", defines: &defines, global, local: LOCAL };
        // SAFETY: the kernel takes no place beyond the uses, of which there are as many as rows of `results`.
        unsafe {
            scope.launch(
                work,
                &[
                    results.into(),
                    (&self.weights).into(),
                    (&self.places).into(),
                    tokens.into(),
                    x.into(),
                ],
            )
        }
    }
}
