//! One pass: a batch of tokens through all steps of a plan.

use std::ops::Range;

use tandem_cpu::Cpu;
use tandem_cpu::ops::{Largest, Rope};
use tandem_memory::KvCache;
use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::activations::{Activation, Activations};
use super::cpu::CpuInput;
use super::igpu::Igpu;
use super::output::RouterTrace;
use crate::error::Result;
use crate::model::Model;
use crate::plan::{Placement, Plan, Step};
use crate::profile::{Operation, Profile};

/// Tokens that go through the model together.
pub(super) struct Batch<'a> {
    pub(super) ids: &'a [u32],
    /// Position of the first.
    pub(super) start: usize,
    /// Those whose logits are wanted.
    pub(super) wanted: Range<usize>,
}

impl Batch<'_> {
    /// The position after the last.
    pub(super) fn end(&self) -> usize {
        self.start + self.ids.len()
    }

    /// Numbers of the largest results that two devices share.
    pub(super) fn largest_parts(&self, c: &PhimoeConfig) -> usize {
        let tokens = self.ids.len();
        [
            tokens * (c.q_dim() + 2 * c.kv_dim()),
            EXPERTS_PER_TOKEN * tokens * (2 * c.expert_width).max(c.hidden_size),
            self.wanted.len() * c.vocab_size,
        ]
        .into_iter()
        .fold(0, usize::max)
    }
}

/// What a pass works with.
pub(super) struct Pass<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) igpu: Option<&'a mut Igpu>,
    pub(super) model: &'a Model,
    pub(super) rope: &'a Rope,
    pub(super) activations: &'a mut Activations,
    /// Room for the results of two devices before they are put together.
    pub(super) parts: &'a mut Activation<f32>,
    pub(super) input: &'a mut CpuInput,
    pub(super) profile: &'a mut Profile,
    pub(super) kv: &'a mut KvCache,
    /// Where the largest logits of each wanted token go; empty where they are not asked for.
    pub(super) largest: &'a [Largest<'a>],
    pub(super) trace: Option<&'a mut RouterTrace>,
    pub(super) batch: &'a Batch<'a>,
}

impl Pass<'_> {
    /// Computes all steps, but for the last ones where no logits are wanted.
    pub(super) fn run(&mut self, plan: &Plan) -> Result<()> {
        self.profile.begin();
        if plan.uses_igpu() {
            self.activations.ids.copy_from_slice(self.batch.ids);
            self.rope.write_angles(self.batch.start, &mut self.activations.angles);
        }
        let wanted = !self.batch.wanted.is_empty();
        let steps: Vec<Step> = plan
            .steps()
            .take_while(|step| wanted || step.operation != Operation::FinalLayernorm)
            .map(|step| Step { placement: self.placement(step), ..step })
            .collect();
        let mut rest = &steps[..];
        while let Some(&step) = rest.first() {
            if step.placement != Placement::Igpu
                && let Some(gpu) = self.igpu.as_deref().and_then(Igpu::own_memory)
            {
                self.activations.download(gpu, step.operation)?;
            }
            let count = match step.placement {
                Placement::Cpu => self.on_cpu(step).map(|()| 1)?,
                Placement::Split(share) => self.on_both(step, share).map(|()| 1)?,
                Placement::Igpu => {
                    let run = self.run_length(rest);
                    self.on_igpu(&rest[..run])?;
                    run
                }
            };
            rest = &rest[count..];
        }
        Ok(())
    }

    /// What computes a step: where the plan says, unless the GPU does not compute such.
    fn placement(&self, step: Step) -> Placement {
        let refused = |igpu: &Igpu| igpu.refusal(step.operation, self.kv.kind()).is_some();
        match step.placement {
            _ if self.igpu.as_deref().is_none_or(refused) => Placement::Cpu,
            Placement::Split(share) if share <= 0.0 => Placement::Cpu,
            Placement::Split(share) if share >= 1.0 => Placement::Igpu,
            placement => placement,
        }
    }

    /// How many steps from the first on are the GPU's. What the router decided must be listened to before it is
    /// overwritten.
    fn run_length(&self, steps: &[Step]) -> usize {
        let cut =
            |step: &Step| self.trace.is_some() && step.operation == Operation::ExpertSelection;
        let run = steps.iter().take_while(|step| step.placement == Placement::Igpu).count();
        steps[..run].iter().position(cut).map_or(run, |selection| selection + 1)
    }
}

/// Bytes of keys and values that a layer's attention reads, and its arithmetic.
pub(super) fn attention_cost(
    config: &PhimoeConfig,
    batch: &Batch<'_>,
    kv: &KvCache,
) -> (usize, usize) {
    let window = config.sliding_window.unwrap_or(usize::MAX);
    let bytes = batch.end().min(window) * kv.bytes_per_token() / config.n_layers;
    let visible: usize = (batch.start..batch.end()).map(|i| (i + 1).min(window)).sum();
    (bytes, 2 * 2 * config.q_dim() * visible)
}
