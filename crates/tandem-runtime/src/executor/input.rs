//! The input of products in 8 bits: quantized once, by the device that comes to it first, and read by both.

use tandem_cpu::Cpu;
use tandem_cpu::ops::{self, Input, LayerNorm, Precision, QuantizedActivations, Weights};
use tandem_gpu::ops::{Quantized, QuantizedRoom};
use tandem_gpu::{Gpu, GpuVec, Scope, Sharing, ops as gpu_ops};
use tandem_memory::packed::BLOCK_COLS;
use tandem_memory::{AllocError, QuantizedBlock};
use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::Memory;

/// Activations that go into products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activated {
    /// What a LayerNorm made.
    Normed,
    /// What attention made.
    Mixed,
    /// What the experts' gate and up made.
    Gated,
}

/// The input of the products that come next, in 8 bits where their weights are packed.
///
/// The blocks are in memory that both devices address; a GPU with memory of its own has a copy of them.
#[derive(Default)]
pub(super) struct ProductInput {
    quantized: QuantizedActivations,
    /// What has been quantized; `None` where that is out of date.
    of: Option<Activated>,
    /// Where it is.
    on_cpu: bool,
    on_gpu: bool,
    copy: Option<GpuVec<QuantizedBlock>>,
}

impl ProductInput {
    /// Makes room for the widest input of so many tokens, in that memory.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(super) fn resize(
        &mut self,
        memory: &Memory,
        config: &PhimoeConfig,
        tokens: usize,
    ) -> Result<(), AllocError> {
        let gated = EXPERTS_PER_TOKEN * Precision::Bits16.planes() * config.expert_width;
        let widest = config.hidden_size.max(config.q_dim()).max(gated);
        let blocks = (tokens * widest).div_ceil(BLOCK_COLS);
        self.clear();
        if blocks > self.quantized.room().len() {
            self.quantized.use_memory(memory.zeroed(blocks * size_of::<QuantizedBlock>())?);
        }
        Ok(())
    }

    /// Normalises `x` into `out`, which is quantized on the way where `weights` want that.
    pub(super) fn norm(
        &mut self,
        cpu: &Cpu,
        norm: LayerNorm<'_>,
        x: &[f32],
        out: &mut [f32],
        weights: &[Weights<'_>],
    ) {
        norm.input(cpu, x, out, (weights, Precision::Bits8), &mut self.quantized);
        self.is_on_cpu(Activated::Normed);
    }

    /// `gate = silu(gate) * up`, quantized on the way to that precision where the weights want that.
    pub(super) fn gate(
        &mut self,
        cpu: &Cpu,
        (gate, up): (&mut [f32], &[f32]),
        width: usize,
        (weights, precision): (Weights<'_>, Precision),
    ) {
        ops::silu_mul(cpu, gate, up, width, (&[weights], precision), &mut self.quantized);
        self.is_on_cpu(Activated::Gated);
    }

    /// Quantizes `x`, which are these activations, for products with `weights`, where that is not done yet.
    pub(super) fn prepare(
        &mut self,
        cpu: &Cpu,
        (what, x): (Activated, &[f32]),
        weights: &[Weights<'_>],
        precision: Precision,
    ) {
        if self.of != Some(what) || !self.on_cpu {
            let _input = Input::new(cpu, x, weights, precision, &mut self.quantized);
            self.is_on_cpu(what);
        }
    }

    /// What was prepared, as the input of the CPU's products.
    pub(super) fn on_cpu<'a>(&'a self, x: &'a [f32], weights: &[Weights<'_>]) -> Input<'a> {
        Input::prepared_before(x, weights, &self.quantized)
    }

    /// `x`, which are these activations, as the input of products with `weights`.
    pub(super) fn of<'a>(
        &'a mut self,
        cpu: &Cpu,
        (what, x): (Activated, &'a [f32]),
        weights: &[Weights<'_>],
        precision: Precision,
    ) -> Input<'a> {
        self.prepare(cpu, (what, x), weights, precision);
        self.on_cpu(x, weights)
    }

    /// Brings what the CPU has quantized to a GPU with memory of its own, and makes room there.
    ///
    /// # Errors
    /// When the driver fails.
    pub(super) fn bring(&mut self, gpu: &Gpu) -> tandem_gpu::Result<()> {
        if gpu.memory().sharing() != Sharing::None {
            self.on_gpu = self.on_cpu;
            return Ok(());
        }
        let room = self.quantized.room();
        let mut copy = match self.copy.take() {
            Some(copy) if copy.len() >= room.len() => copy,
            _ => {
                self.on_gpu = false;
                gpu.zeros(room.len())?
            }
        };
        if self.of.is_some() && self.on_cpu && !self.on_gpu {
            let precision = self.quantized.precision();
            let blocks = self.numbers() / BLOCK_COLS * precision.planes();
            gpu.write_at(&mut copy, 0, &room[..blocks])?;
            self.on_gpu = true;
        }
        self.copy = Some(copy);
        Ok(())
    }

    /// Lends what was prepared and [brought](Self::bring) to a GPU.
    ///
    /// # Errors
    /// When it is in memory that the GPU does not address.
    pub(super) fn lend<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> tandem_gpu::Result<Option<(Activated, Quantized<'scope>)>> {
        let Some(of) = self.of.filter(|_| self.on_gpu && self.numbers() > 0) else {
            return Ok(None);
        };
        let blocks = match &self.copy {
            Some(copy) => scope.vec(copy)?,
            None => scope.lend(self.quantized.room())?,
        };
        let precision = on_gpu(self.quantized.precision());
        Ok(Some((of, Quantized::new(blocks, self.numbers(), self.quantized.cols(), precision))))
    }

    /// Lends the room to a GPU, with what it holds.
    ///
    /// # Errors
    /// As [`Self::lend`].
    pub(super) fn lend_room<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
    ) -> tandem_gpu::Result<(QuantizedRoom<'scope>, Option<(Activated, Quantized<'scope>)>)> {
        let (numbers, cols) = (self.numbers(), self.quantized.cols());
        let precision = on_gpu(self.quantized.precision());
        let of = self.of.filter(|_| self.on_gpu && numbers > 0);
        let room = QuantizedRoom::new(match &mut self.copy {
            Some(copy) => scope.vec_mut(copy)?,
            None => scope.lend_mut(self.quantized.room_mut())?,
        });
        let there = of.map(|of| (of, room.holding(numbers, cols, precision)));
        Ok((room, there))
    }

    /// What the GPU has left in the room: these activations, so many in rows of so many.
    pub(super) fn left_by_gpu(&mut self, left: Option<Left>) {
        self.of = left.map(|left| left.of);
        self.on_gpu = true;
        self.on_cpu = self.copy.is_none();
        if let Some(Left { numbers, cols, precision, .. }) = left {
            let precision = match precision {
                gpu_ops::Precision::Bits8 => Precision::Bits8,
                gpu_ops::Precision::Bits16 => Precision::Bits16,
            };
            self.quantized.shape(numbers, cols, precision);
        }
    }

    /// Activations have changed.
    pub(super) fn clear(&mut self) {
        self.of = None;
    }

    fn is_on_cpu(&mut self, what: Activated) {
        self.of = Some(what);
        self.on_cpu = true;
        self.on_gpu = false;
    }

    fn numbers(&self) -> usize {
        self.quantized.tokens() * self.quantized.cols()
    }
}

/// Quantized activations that a GPU has left behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) of: Activated,
    pub(super) numbers: usize,
    pub(super) cols: usize,
    pub(super) precision: gpu_ops::Precision,
}

/// A precision as the GPU's operations name it.
fn on_gpu(precision: Precision) -> gpu_ops::Precision {
    match precision {
        Precision::Bits8 => gpu_ops::Precision::Bits8,
        Precision::Bits16 => gpu_ops::Precision::Bits16,
    }
}
