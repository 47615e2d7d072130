//! The experts' side of a batch: who uses which expert.
//!
//! With tokens ordered by expert each expert's weights are read once, and its results lie next to each other.

use std::ops::Range;

use tandem_gpu::ops::Uses;
use tandem_gpu::{Gpu, Scope};
use tandem_memory::AllocError;
use tandem_model::config::EXPERTS_PER_TOKEN;

use crate::executor::{Activation, Memory};
use crate::plan::ExpertRange;

/// Which tokens of a batch use which experts, ordered by expert. A *use* is a token's choice of an expert; every
/// token has two.
#[derive(Default)]
pub(crate) struct ExpertUses {
    /// Token of each use.
    pub(crate) tokens: Activation<u32>,
    /// Weight of each use.
    pub(crate) weights: Activation<f32>,
    /// The uses of each token, `[token][2]`.
    pub(crate) places: Activation<u32>,
    /// Where each expert's uses begin, and where the last one's end.
    pub(crate) starts: Activation<u32>,
    /// 0, 1, 2 and so on: the uses themselves, to be selected from.
    pub(crate) numbers: Vec<u32>,
}

impl ExpertUses {
    /// Makes room for a batch of `tokens`.
    pub(crate) fn resize(
        &mut self,
        memory: &Memory,
        tokens: usize,
        n_experts: usize,
    ) -> Result<(), AllocError> {
        let uses = EXPERTS_PER_TOKEN * tokens;
        self.tokens.resize(memory, uses)?;
        self.weights.resize(memory, uses)?;
        self.places.resize(memory, uses)?;
        self.starts.resize(memory, n_experts + 1)?;
        self.numbers.clear();
        self.numbers.extend((0u32..).take(uses));
        Ok(())
    }

    /// Brings what the CPU has changed to a GPU with memory of its own.
    pub(crate) fn upload(&mut self, gpu: &Gpu) -> tandem_gpu::Result<()> {
        self.tokens.upload(gpu)?;
        self.weights.upload(gpu)?;
        self.places.upload(gpu)?;
        self.starts.upload(gpu)
    }

    /// Brings what such a GPU has changed back.
    pub(crate) fn download(&mut self, gpu: &Gpu) -> tandem_gpu::Result<()> {
        self.tokens.download(gpu)?;
        self.weights.download(gpu)?;
        self.places.download(gpu)?;
        self.starts.download(gpu)
    }

    /// Lends the uses to a GPU.
    pub(crate) fn lend<'scope>(
        &'scope mut self,
        scope: &'scope Scope<'scope, '_>,
    ) -> tandem_gpu::Result<Uses<'scope>> {
        Ok(Uses::new(
            self.starts.lend_mut(scope)?,
            self.tokens.lend_mut(scope)?,
            self.weights.lend_mut(scope)?,
            self.places.lend_mut(scope)?,
        ))
    }

    /// Which uses are those of some experts.
    pub(crate) fn of(&self, experts: ExpertRange) -> Range<usize> {
        let first = self.starts[usize::from(experts.first)];
        let end = self.starts[usize::from(experts.last) + 1];
        first as usize..end as usize
    }

    /// Takes a batch's choices and their weights, `[token][2]`, in place of the last one's.
    pub(crate) fn fill(&mut self, chosen: &[u32], weights: &[f32]) {
        let mut met = vec![0usize; chosen.len() / EXPERTS_PER_TOKEN];
        let mut count = 0;
        for (expert, start) in (0u32..).zip(self.starts.iter_mut()) {
            *start = count as u32;
            let choices = chosen.iter().zip(weights).enumerate();
            for (choice, (_, &weight)) in choices.filter(|(_, (chosen, _))| **chosen == expert) {
                let token = choice / EXPERTS_PER_TOKEN;
                // A token's uses by rising expert.
                self.places[token * EXPERTS_PER_TOKEN + met[token]] = count as u32;
                met[token] += 1;
                self.tokens[count] = token as u32;
                self.weights[count] = weight;
                count += 1;
            }
        }
    }

    /// The experts that are used, each with the range of its uses.
    pub(crate) fn experts(&self) -> impl Iterator<Item = (u16, Range<usize>)> + '_ {
        let ranges = self.starts.windows(2).map(|bounds| bounds[0] as usize..bounds[1] as usize);
        (0u16..).zip(ranges).filter(|(_, range)| !range.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use tandem_memory::SystemMemory;

    #[test]
    fn uses_are_ordered_by_expert_and_then_by_token() {
        let memory: Memory = Arc::new(SystemMemory);
        let mut uses = ExpertUses::default();
        uses.resize(&memory, 3, 6).unwrap();
        for _ in 0..2 {
            uses.fill(&[2, 0, 2, 5, 0, 2], &[0.5, 0.25, 0.75, 0.125, 1.0, 2.0]);
            let experts: Vec<_> = uses.experts().collect();
            assert_eq!(experts, [(0, 0..2), (2, 2..5), (5, 5..6)]);
            assert_eq!(uses.tokens[..], [0, 2, 0, 1, 2, 1]);
            assert_eq!(uses.weights[..], [0.25, 1.0, 0.5, 0.75, 2.0, 0.125]);
            assert_eq!(uses.places[..], [0, 2, 3, 5, 1, 4]);
            assert_eq!(uses.numbers, [0, 1, 2, 3, 4, 5]);
        }
        uses.resize(&memory, 0, 6).unwrap();
        uses.fill(&[], &[]);
        assert_eq!(uses.experts().count(), 0);
    }
}
