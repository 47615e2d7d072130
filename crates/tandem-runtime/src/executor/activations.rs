//! What goes from operation to operation: the activations of one batch, in memory that every device can use.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use tandem_gpu::{Gpu, GpuVec, Region, RegionMut, Scope};
use tandem_memory::{AlignedBuffer, AllocError, Allocator, Element};
use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::igpu::Igpu;
use crate::experts::ExpertUses;
use crate::plan::Step;
use crate::profile::Operation as Op;

/// Where activations come from.
pub(crate) type Memory = Arc<dyn Allocator + Send + Sync>;

/// Numbers that keep their memory from batch to batch.
///
/// A GPU with memory of its own has a copy there, and either side may be the newer one.
pub(crate) struct Activation<T> {
    /// None until there are numbers.
    memory: Option<AlignedBuffer>,
    len: usize,
    copy: Option<GpuVec<T>>,
    newer: Newer,
}

/// Where the newest numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newer {
    Neither,
    Cpu,
    Gpu,
}

impl<T> Default for Activation<T> {
    fn default() -> Self {
        Self { memory: None, len: 0, copy: None, newer: Newer::Neither }
    }
}

impl<T: Element> Activation<T> {
    /// Makes room for `len` numbers, which may be anything.
    pub(crate) fn resize(&mut self, memory: &Memory, len: usize) -> Result<(), AllocError> {
        let bytes = len.saturating_mul(size_of::<T>());
        if bytes > self.memory.as_ref().map_or(0, |memory| memory.len()) {
            self.memory = Some(memory.zeroed(bytes)?);
        }
        self.len = len;
        self.newer = Newer::Neither;
        Ok(())
    }

    /// Brings the newest numbers to a GPU with memory of its own, and makes room for them there.
    pub(crate) fn upload(&mut self, gpu: &Gpu) -> tandem_gpu::Result<()> {
        let mut copy = match self.copy.take() {
            Some(copy) if copy.len() >= self.len => copy,
            // Nothing is lost: a copy that is too short was made before the numbers.
            _ => gpu.zeros(self.len)?,
        };
        if self.newer == Newer::Cpu {
            gpu.write_at(&mut copy, 0, self)?;
            self.newer = Newer::Neither;
        }
        self.copy = Some(copy);
        Ok(())
    }

    /// Brings the newest numbers back from such a GPU; nothing happens where memory is shared.
    pub(crate) fn download(&mut self, gpu: &Gpu) -> tandem_gpu::Result<()> {
        if self.newer == Newer::Gpu
            && let (Some(copy), Some(memory)) = (&self.copy, &mut self.memory)
        {
            gpu.read_at(copy, 0, &mut memory.typed_mut()[..self.len])?;
            self.newer = Newer::Neither;
        }
        Ok(())
    }

    /// Lends the numbers to a GPU for reading.
    pub(crate) fn lend<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> tandem_gpu::Result<Region<'scope, T>> {
        match &self.copy {
            Some(copy) => Ok(scope.vec(copy)?.slice(0..self.len)),
            None => scope.lend(self),
        }
    }

    /// Lends the numbers to a GPU for reading and writing.
    pub(crate) fn lend_mut<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
    ) -> tandem_gpu::Result<RegionMut<'scope, T>> {
        match (&mut self.copy, &mut self.memory) {
            (Some(copy), _) => {
                self.newer = Newer::Gpu;
                Ok(scope.vec_mut(copy)?.slice_mut(0..self.len))
            }
            (None, Some(memory)) => scope.lend_mut(&mut memory.typed_mut()[..self.len]),
            (None, None) => scope.lend_mut(&mut []),
        }
    }

    /// The numbers, and the room for them on a GPU with memory of its own.
    pub(crate) fn both_sides(&mut self) -> (&mut [T], Option<&mut GpuVec<T>>) {
        let memory = self.memory.as_mut().map_or(&mut [][..], |memory| memory.typed_mut());
        (&mut memory[..self.len], self.copy.as_mut())
    }
}

impl<T: Element> Deref for Activation<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.memory.as_ref().map_or(&[], |memory| &memory.typed()[..self.len])
    }
}

impl<T: Element> DerefMut for Activation<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.newer = Newer::Cpu;
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.typed_mut()[..self.len])
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for Activation<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Cosine and sine of every pair of a position.
pub(super) const ANGLE: usize = 2;

/// The activations of a batch.
#[derive(Default)]
pub(super) struct Activations {
    /// What the tokens are.
    pub(super) ids: Activation<u32>,
    /// Cosines and sines of the tokens' positions, `[token][pair][2]`.
    pub(super) angles: Activation<f32>,
    /// The residual stream, `tokens x hidden`.
    pub(super) x: Activation<f32>,
    /// What the last LayerNorm made of it.
    pub(super) normed: Activation<f32>,
    pub(super) q: Activation<f32>,
    pub(super) k: Activation<f32>,
    pub(super) v: Activation<f32>,
    /// Attention's output before the o projection, `tokens x q_dim`.
    pub(super) mixed: Activation<f32>,
    /// Router logits, `tokens x experts`.
    pub(super) router: Activation<f32>,
    /// The experts of each token, `layers x tokens x 2`: all layers' are there at the end, for those who count them.
    pub(super) chosen: Activation<u32>,
    /// Their weights.
    pub(super) chosen_weights: Activation<f32>,
    pub(super) uses: ExpertUses,
    /// `uses x expert width`; later the product with `up`.
    pub(super) gate: Activation<f32>,
    pub(super) up: Activation<f32>,
    /// `uses x hidden`.
    pub(super) down: Activation<f32>,
    /// `wanted tokens x vocab`.
    pub(super) logits: Activation<f32>,
    /// The id of the largest logit of each wanted token.
    pub(super) best: Activation<u32>,
}

impl Activations {
    /// Makes room for a batch of `tokens`, with logits for `wanted` of them.
    pub(super) fn resize(
        &mut self,
        memory: &Memory,
        c: &PhimoeConfig,
        tokens: usize,
        wanted: usize,
    ) -> Result<(), AllocError> {
        let uses = EXPERTS_PER_TOKEN * tokens;
        for (activation, len) in [
            (&mut self.angles, tokens * c.head_dim / 2 * ANGLE),
            (&mut self.x, tokens * c.hidden_size),
            (&mut self.normed, tokens * c.hidden_size),
            (&mut self.q, tokens * c.q_dim()),
            (&mut self.mixed, tokens * c.q_dim()),
            (&mut self.k, tokens * c.kv_dim()),
            (&mut self.v, tokens * c.kv_dim()),
            (&mut self.router, tokens * c.n_experts),
            (&mut self.chosen_weights, uses),
            (&mut self.gate, uses * c.expert_width),
            (&mut self.up, uses * c.expert_width),
            (&mut self.down, uses * c.hidden_size),
            (&mut self.logits, wanted * c.vocab_size),
        ] {
            activation.resize(memory, len)?;
        }
        self.ids.resize(memory, tokens)?;
        self.best.resize(memory, wanted)?;
        self.chosen.resize(memory, c.n_layers * uses)?;
        self.uses.resize(memory, tokens, c.n_experts)
    }

    /// The experts that the batch uses, where steps that compute them on a GPU must know.
    pub(super) fn used_experts(
        &mut self,
        igpu: &Igpu,
        steps: &[Step],
    ) -> tandem_gpu::Result<Vec<usize>> {
        let of_experts = |step: &Step| matches!(step.operation, Op::ExpertFfnW1 | Op::ExpertFfnW2);
        if igpu.expert_memory().cache().is_none() || !steps.iter().any(of_experts) {
            return Ok(Vec::new());
        }
        self.uses.starts.download(igpu.gpu())?;
        Ok(self.uses.experts().map(|(expert, _)| usize::from(expert)).collect())
    }

    /// Where a layer's experts are in [`Self::chosen`].
    pub(super) fn choices(&self, layer: usize) -> Range<usize> {
        let uses = self.chosen_weights.len();
        layer * uses..(layer + 1) * uses
    }

    /// Brings everything that the CPU has changed to a GPU with memory of its own.
    pub(super) fn upload(&mut self, gpu: &Gpu) -> tandem_gpu::Result<()> {
        for activation in [
            &mut self.angles,
            &mut self.x,
            &mut self.normed,
            &mut self.q,
            &mut self.k,
            &mut self.v,
            &mut self.mixed,
            &mut self.router,
            &mut self.chosen_weights,
            &mut self.gate,
            &mut self.up,
            &mut self.down,
            &mut self.logits,
        ] {
            activation.upload(gpu)?;
        }
        for activation in [&mut self.ids, &mut self.chosen, &mut self.best] {
            activation.upload(gpu)?;
        }
        self.uses.upload(gpu)
    }

    /// Brings what an operation reads back from such a GPU.
    pub(super) fn download(&mut self, gpu: &Gpu, operation: Op) -> tandem_gpu::Result<()> {
        let read: &mut [&mut Activation<f32>] = match operation {
            Op::Embedding => &mut [],
            Op::AttentionLayernorm | Op::MoeLayernorm | Op::FinalLayernorm => &mut [&mut self.x],
            Op::AttentionQkvProj | Op::RouterLogits | Op::ExpertFfnW1 | Op::LmHead => {
                &mut [&mut self.normed]
            }
            Op::AttentionCompute => &mut [&mut self.q, &mut self.k, &mut self.v],
            Op::AttentionOutputProj => &mut [&mut self.mixed, &mut self.x],
            Op::ExpertSelection => &mut [&mut self.router],
            Op::ExpertDispatch => &mut [&mut self.chosen_weights],
            Op::ExpertFfnActivation => &mut [&mut self.gate, &mut self.up],
            Op::ExpertFfnW2 => &mut [&mut self.gate],
            Op::ExpertGather => &mut [&mut self.down, &mut self.x],
        };
        read.iter_mut().try_for_each(|activation| activation.download(gpu))?;
        match operation {
            Op::ExpertDispatch => self.chosen.download(gpu),
            Op::ExpertFfnW1 | Op::ExpertFfnW2 | Op::ExpertGather => self.uses.download(gpu),
            _ => Ok(()),
        }
    }

    /// Brings what an operation has written back from such a GPU.
    pub(super) fn download_output(&mut self, gpu: &Gpu, of: Op) -> tandem_gpu::Result<()> {
        let written: &mut [&mut Activation<f32>] = match of {
            Op::Embedding | Op::AttentionOutputProj | Op::ExpertGather => &mut [&mut self.x],
            Op::AttentionLayernorm | Op::MoeLayernorm | Op::FinalLayernorm => {
                &mut [&mut self.normed]
            }
            Op::AttentionQkvProj => &mut [&mut self.q, &mut self.k, &mut self.v],
            Op::AttentionCompute => &mut [&mut self.mixed],
            Op::RouterLogits => &mut [&mut self.router],
            Op::ExpertDispatch => return self.uses.download(gpu),
            Op::ExpertFfnW1 => &mut [&mut self.gate, &mut self.up],
            Op::ExpertFfnActivation => &mut [&mut self.gate],
            Op::ExpertFfnW2 => &mut [&mut self.down],
            Op::ExpertSelection | Op::LmHead => return self.download_results(gpu, of),
        };
        written.iter_mut().try_for_each(|activation| activation.download(gpu))
    }

    /// Brings what others than operations look at back from such a GPU: choices of experts, and logits.
    pub(super) fn download_results(&mut self, gpu: &Gpu, of: Op) -> tandem_gpu::Result<()> {
        match of {
            Op::ExpertSelection => {
                self.router.download(gpu)?;
                self.chosen.download(gpu)?;
                self.chosen_weights.download(gpu)
            }
            Op::LmHead => {
                self.logits.download(gpu)?;
                self.best.download(gpu)
            }
            _ => Ok(()),
        }
    }
}
