//! The operations of a pass as the CPU computes them.

mod attention;
mod head;
mod moe;
mod upcoming;

pub(super) use moe::down_precision;

use tandem_cpu::Cpu;
use tandem_cpu::ops::{self, Input, LayerNorm, Precision, QuantizedActivations, Weights};

use super::pass::Pass;
use crate::error::Result;
use crate::plan::Step;
use crate::profile::Operation as Op;

impl Pass<'_> {
    /// Computes one step.
    pub(super) fn on_cpu(&mut self, step: Step) -> Result<()> {
        let layer = usize::from(step.layer.unwrap_or_default());
        self.announce_after(step.operation, layer);
        match step.operation {
            Op::Embedding => self.embedding(),
            Op::AttentionLayernorm => self.attention_layernorm(layer),
            Op::AttentionQkvProj => self.attention_qkv_proj(layer),
            Op::AttentionCompute => self.attention_compute(layer)?,
            Op::AttentionOutputProj => self.attention_output_proj(layer),
            Op::MoeLayernorm => self.moe_layernorm(layer),
            Op::RouterLogits => self.router_logits(layer),
            Op::ExpertSelection => self.expert_selection(layer),
            Op::ExpertDispatch => self.expert_dispatch(layer),
            Op::ExpertFfnW1 => self.expert_ffn_w1(layer),
            Op::ExpertFfnActivation => self.expert_ffn_activation(layer),
            Op::ExpertFfnW2 => self.expert_ffn_w2(layer),
            Op::ExpertGather => self.expert_gather(),
            Op::FinalLayernorm => self.final_layernorm(),
            Op::LmHead => self.lm_head(),
        }
        Ok(())
    }
}

/// The input of the products that come next, in 8 bits where their weights are packed.
#[derive(Default)]
pub(super) struct CpuInput {
    quantized: QuantizedActivations,
    /// What has been quantized; `None` where that is out of date.
    of: Option<Activated>,
}

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

impl CpuInput {
    /// Normalises `x` into `out`, which is quantized on the way where `weights` want that.
    fn norm(
        &mut self,
        cpu: &Cpu,
        norm: LayerNorm<'_>,
        x: &[f32],
        out: &mut [f32],
        weights: &[Weights<'_>],
    ) {
        norm.input(cpu, x, out, (weights, Precision::Bits8), &mut self.quantized);
        self.of = Some(Activated::Normed);
    }

    /// `gate = silu(gate) * up`, quantized on the way to that precision where the weights want that.
    fn gate(
        &mut self,
        cpu: &Cpu,
        (gate, up): (&mut [f32], &[f32]),
        width: usize,
        (weights, precision): (Weights<'_>, Precision),
    ) {
        ops::silu_mul(cpu, gate, up, width, (&[weights], precision), &mut self.quantized);
        self.of = Some(Activated::Gated);
    }

    /// `x`, which are these activations, as the input of products with `weights`.
    pub(super) fn of<'a>(
        &'a mut self,
        cpu: &Cpu,
        (what, x): (Activated, &'a [f32]),
        weights: &[Weights<'_>],
        precision: Precision,
    ) -> Input<'a> {
        if self.of == Some(what) {
            return Input::prepared_before(x, weights, &self.quantized);
        }
        self.of = Some(what);
        Input::new(cpu, x, weights, precision, &mut self.quantized)
    }

    /// Activations have changed.
    pub(super) fn clear(&mut self) {
        self.of = None;
    }
}
