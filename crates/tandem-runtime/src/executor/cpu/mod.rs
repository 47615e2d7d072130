//! The operations of a pass as the CPU computes them.

mod attention;
mod head;
mod moe;
mod upcoming;

pub(super) use moe::down_precision;

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
