//! One pass: a batch of tokens through all steps of a plan.

use tandem_cpu::Cpu;
use tandem_cpu::ops::{Largest, Rope};
use tandem_memory::KvCache;

use super::activations::{ANGLE, Activation, Activations};
use super::batch::Batch;
use super::igpu::Igpu;
use super::input::ProductInput;
use super::instruments::Instruments;
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
    pub(super) input: &'a mut ProductInput,
    pub(super) profile: &'a mut Profile,
    /// The caches of the batch's sequences; none where others have them, and nothing is attended to.
    pub(super) caches: Vec<&'a mut KvCache>,
    /// Where the largest logits of each wanted token go; empty where they are not asked for.
    pub(super) largest: &'a [Largest<'a>],
    pub(super) trace: Option<&'a mut RouterTrace>,
    pub(super) batch: &'a Batch,
    pub(super) instruments: &'a Instruments,
    /// The number of this pass.
    pub(super) packet: u64,
    /// Whether it has waited for the bandwidth token in vain.
    pub(super) gave_up: bool,
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
            .map(|step| self.resolved(step))
            .collect();
        self.run_all(&steps)?;
        self.tell_end()
    }

    /// Computes some steps, which are where they can be computed.
    pub(super) fn run_all(&mut self, steps: &[Step]) -> Result<()> {
        let mut rest = steps;
        while let Some(&step) = rest.first() {
            if step.placement != Placement::Igpu
                && let Some(gpu) = self.igpu.as_deref().and_then(Igpu::own_memory)
            {
                self.activations.download(gpu, step.operation)?;
            }
            let count = match step.placement {
                Placement::Igpu => self.run_length(rest),
                Placement::Cpu | Placement::Split(_) | Placement::Experts(_) => 1,
            };
            let run;
            (run, rest) = rest.split_at(count);
            self.watched(run, |pass| match step.placement {
                Placement::Cpu => pass.on_cpu(step),
                Placement::Split(share) => pass.on_both(step, share),
                Placement::Experts(range) => pass.by_expert(step, range),
                Placement::Igpu => pass.on_igpu(run),
            })?;
        }
        Ok(())
    }

    /// Writes down what only the GPU reads.
    pub(super) fn prepare_igpu(&mut self) {
        let acts = &mut *self.activations;
        acts.ids.copy_from_slice(&self.batch.ids);
        let width = ANGLE * self.model.config().head_dim / 2;
        for part in &self.batch.parts {
            self.rope.write_angles(part.start, &mut acts.angles[part.rows(width)]);
        }
    }

    /// A step where it can be computed: where the plan says, unless the GPU does not compute such.
    pub(super) fn resolved(&self, step: Step) -> Step {
        let refused = |igpu: &Igpu| igpu.refusal(step.operation).is_some();
        let placement = match step.placement {
            _ if self.igpu.as_deref().is_none_or(refused) => Placement::Cpu,
            Placement::Split(share) if share <= 0.0 => Placement::Cpu,
            Placement::Split(share) if share >= 1.0 => Placement::Igpu,
            placement => placement,
        };
        Step { placement, ..step }
    }

    /// How many steps from the first on are the GPU's. What the router decided must be listened to before it is
    /// overwritten, and where the GPU has only some of the experts, it must be known before the experts' turn.
    fn run_length(&self, steps: &[Step]) -> usize {
        let has_cache =
            self.igpu.as_deref().is_some_and(|igpu| igpu.expert_memory().cache().is_some());
        let cut = |step: &Step| match step.operation {
            Operation::ExpertSelection => self.trace.is_some(),
            Operation::ExpertDispatch => has_cache,
            _ => false,
        };
        let run = steps.iter().take_while(|step| step.placement == Placement::Igpu).count();
        steps[..run].iter().position(cut).map_or(run, |selection| selection + 1)
    }
}
