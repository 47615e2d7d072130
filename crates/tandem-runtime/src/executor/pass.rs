//! One pass: a batch of tokens through all steps of a plan.

use tandem_cpu::Cpu;
use tandem_cpu::ops::{Largest, Rope};
use tandem_memory::KvCache;

use super::activations::{ANGLE, Activation, Activations};
use super::batch::Batch;
use super::cpu::CpuInput;
use super::igpu::Igpu;
use super::output::RouterTrace;
use crate::error::Result;
use crate::model::Model;
use crate::plan::{Placement, Plan, Step};
use crate::profile::{Operation, Profile};

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
    /// The caches of the batch's sequences.
    pub(super) caches: &'a mut [&'a mut KvCache],
    /// Where the largest logits of each wanted token go; empty where they are not asked for.
    pub(super) largest: &'a [Largest<'a>],
    pub(super) trace: Option<&'a mut RouterTrace>,
    pub(super) batch: &'a Batch,
}

impl Pass<'_> {
    /// Computes all steps, but for the last ones where no logits are wanted.
    pub(super) fn run(&mut self, plan: &Plan) -> Result<()> {
        self.profile.begin();
        if plan.uses_igpu() {
            self.prepare_igpu();
        }
        let wanted = self.batch.n_wanted() > 0;
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

    /// Writes down what only the GPU reads.
    fn prepare_igpu(&mut self) {
        let acts = &mut *self.activations;
        acts.ids.copy_from_slice(&self.batch.ids);
        let width = ANGLE * self.model.config().head_dim / 2;
        for part in &self.batch.parts {
            self.rope.write_angles(part.start, &mut acts.angles[part.rows(width)]);
        }
    }

    /// What computes a step: where the plan says, unless the GPU does not compute such.
    fn placement(&self, step: Step) -> Placement {
        let refused = |igpu: &Igpu| igpu.refusal(step.operation).is_some();
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
