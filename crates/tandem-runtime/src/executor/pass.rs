//! One pass: a batch of tokens through all steps of a plan.

use std::ops::Range;

use tandem_cpu::Cpu;
use tandem_cpu::ops::{Largest, Rope};
use tandem_memory::KvCache;

use super::activations::Activations;
use super::cpu::CpuInput;
use super::output::RouterTrace;
use crate::error::Result;
use crate::model::Model;
use crate::plan::Plan;
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
}

/// What a pass works with.
pub(super) struct Pass<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) model: &'a Model,
    pub(super) rope: &'a Rope,
    pub(super) activations: &'a mut Activations,
    pub(super) input: &'a mut CpuInput,
    pub(super) profile: &'a mut Profile,
    pub(super) kv: &'a mut KvCache,
    /// Where the largest logits of each wanted token go; empty where they are not asked for.
    pub(super) largest: &'a [Largest<'a>],
    pub(super) trace: Option<&'a mut RouterTrace>,
    pub(super) batch: Batch<'a>,
}

impl Pass<'_> {
    /// Computes all steps, but for the last ones where no logits are wanted.
    pub(super) fn run(&mut self, plan: &Plan) -> Result<()> {
        self.profile.begin();
        for step in plan.steps() {
            if self.batch.wanted.is_empty() && step.operation == Operation::FinalLayernorm {
                break;
            }
            self.on_cpu(step)?;
        }
        Ok(())
    }
}
