//! A pass from its tokens to its logits: as the policy places it, and on the CPU where the GPU fails at it.

use std::sync::Arc;
use std::time::Instant;

use tandem_cpu::ops::Largest;
use tandem_gpu::GpuError;
use tandem_memory::{KvCache, SystemMemory};

use super::batch::{Batch, Segment};
use super::fallback::gpu_failure;
use super::output::RouterTrace;
use super::pass::Pass;
use super::pipeline::{Lane, Pipeline, Room, is_worthwhile};
use super::{Activation, Executor};
use crate::error::Result;
use crate::plan::{PassSize, Placement, Plan};

impl Executor {
    /// One forward pass. Leaves logits behind. Where the GPU fails, the pass is computed anew on the CPU: from its ids, since
    /// the failed one has left its marks on everything else. After that something is changed so that it may fail less, or
    /// it is put aside.
    pub(super) fn pass(
        &mut self,
        segments: &mut [Segment<'_>],
        largest: &[Largest<'_>],
        mut trace: Option<&mut RouterTrace>,
    ) -> Result<()> {
        assert!(segments.iter().all(|segment| !segment.ids.is_empty()), "a segment without tokens");
        let batch = Batch::new(&mut *segments, self.model.config().vocab_size)?;
        let tokens = batch.ids.len();
        assert!((1..=self.batch).contains(&tokens), "{tokens} tokens in one batch");
        assert!(largest.is_empty() || largest.len() == batch.n_wanted(), "largest of each token");
        let size = PassSize { tokens, context: batch.longest() };
        let plan = self.decide(size, batch.parts.iter().map(|part| part.len()));
        let begun = Instant::now();
        let Err(error) = self.attempt(&plan, &batch, segments, largest, trace.as_deref_mut())
        else {
            self.policy.took(begun.elapsed());
            return Ok(());
        };
        let (trigger, failure) = gpu_failure(error)?;
        // Nothing of the failed pass counts, whatever comes next.
        for (segment, part) in segments.iter_mut().zip(&batch.parts) {
            segment.kv.truncate(part.start);
        }
        largest.iter().for_each(Largest::clear);
        if !self.fallback.settings.covers(trigger) {
            self.forget_rooms();
            return Err(failure.into());
        }
        let cpu = plan.moved(|_| Placement::Cpu);
        if self.degrade(&failure).is_none() {
            self.put_aside(failure);
            return self.attempt(&cpu, &batch, segments, largest, trace);
        }
        // In memory of the CPU's own: the GPU's may be what is lacking.
        let igpu = self.igpu.take();
        let memory = std::mem::replace(&mut self.memory, Arc::new(SystemMemory));
        self.forget_rooms();
        let result = self.attempt(&cpu, &batch, segments, largest, trace);
        self.forget_rooms();
        (self.igpu, self.memory) = (igpu, memory);
        result
    }

    /// Computes on the CPU from now on, in memory of its own.
    pub(super) fn put_aside(&mut self, failure: GpuError) {
        self.note_full_cpu_mode(&failure);
        self.igpu = None;
        self.gpu_failure = Some(failure);
        self.memory = Arc::new(SystemMemory);
        self.forget_rooms();
    }

    /// Memory of passes is taken anew at the next one; logits that somebody still has to read stay.
    fn forget_rooms(&mut self) {
        if !self.room.activations.logits.is_empty() && self.joined.is_none() {
            self.joined = Some(self.room.activations.logits.to_vec());
        }
        self.room = Room::default();
        self.second = Room::default();
        self.parts = Activation::default();
    }

    /// The newest pass's logits.
    pub(super) fn logits(&self) -> &[f32] {
        self.joined.as_deref().unwrap_or(&self.room.activations.logits)
    }

    /// One forward pass, in one turn with the team.
    fn attempt(
        &mut self,
        plan: &Plan,
        batch: &Batch,
        segments: &mut [Segment<'_>],
        largest: &[Largest<'_>],
        trace: Option<&mut RouterTrace>,
    ) -> Result<()> {
        self.joined = None;
        self.rope.extend_table(batch.longest());
        if self.igpu.is_some() {
            self.parts.resize(&self.memory, batch.largest_parts(self.model.config()))?;
        }
        let caches: Vec<_> = segments.iter_mut().map(|segment| &mut *segment.kv).collect();
        let mut choices = trace.is_some().then(RouterTrace::default);
        if self.is_pipelined(plan, batch) {
            self.in_halves(plan, batch, caches, largest, choices.as_mut())?;
        } else {
            self.as_a_whole(plan, batch, caches, largest, choices.as_mut())?;
        }
        if let (Some(trace), Some(choices)) = (trace, choices) {
            trace.append(choices);
        }
        Ok(())
    }

    /// Whether a pass is cut into two micro-batches: where each has as much as it is to have at least, and there is
    /// something for both devices.
    fn is_pipelined(&self, plan: &Plan, batch: &Batch) -> bool {
        self.pipelining.is_some_and(|least| batch.ids.len() >= 2 * least)
            && self.igpu.as_ref().is_some_and(|igpu| is_worthwhile(plan, igpu))
    }

    fn as_a_whole(
        &mut self,
        plan: &Plan,
        batch: &Batch,
        caches: Vec<&mut KvCache>,
        largest: &[Largest<'_>],
        trace: Option<&mut RouterTrace>,
    ) -> Result<()> {
        let (config, tokens) = (self.model.config(), batch.ids.len());
        let Room { activations, input } = &mut self.room;
        activations.resize(&self.memory, config, tokens, batch.n_wanted())?;
        input.resize(&self.memory, config, tokens)?;
        let mut pass = Pass {
            cpu: &self.cpu,
            igpu: self.igpu.as_mut(),
            model: &self.model,
            rope: &self.rope,
            activations,
            parts: &mut self.parts,
            input,
            profile: &mut self.profile,
            caches,
            largest,
            trace,
            batch,
            instruments: &self.instruments,
            packet: self.instruments.next_packet(),
            gave_up: false,
        };
        self.cpu.team().in_turn(self.threads.for_tokens(tokens), || pass.run(plan))
    }

    fn in_halves(
        &mut self,
        plan: &Plan,
        batch: &Batch,
        caches: Vec<&mut KvCache>,
        largest: &[Largest<'_>],
        trace: Option<&mut RouterTrace>,
    ) -> Result<()> {
        let config = self.model.config();
        let [(first, of_first), (second, of_second)] = batch.halves();
        // Where nobody looks for the largest, neither half does.
        let (largest_of_first, largest_of_second) =
            largest.split_at(first.n_wanted().min(largest.len()));
        for (room, half) in [(&mut self.room, &first), (&mut self.second, &second)] {
            let (tokens, wanted) = (half.ids.len(), half.n_wanted());
            room.activations.resize(&self.memory, config, tokens, wanted)?;
            room.input.resize(&self.memory, config, tokens)?;
        }
        let Some(igpu) = self.igpu.as_mut() else { panic!("a pipeline without a GPU") };
        let instruments = &self.instruments;
        let lane = |room, batch, caches, largest| Lane {
            room,
            batch,
            caches,
            largest,
            packet: instruments.next_packet(),
        };
        let mut pipeline = Pipeline {
            cpu: &self.cpu,
            igpu,
            model: &self.model,
            rope: &self.rope,
            parts: &mut self.parts,
            profile: &mut self.profile,
            caches,
            trace,
            instruments,
            lanes: [
                lane(&mut self.room, &first, of_first, largest_of_first),
                lane(&mut self.second, &second, of_second, largest_of_second),
            ],
        };
        let threads = self.threads.for_tokens(batch.ids.len());
        self.overlaps += self.cpu.team().in_turn(threads, || pipeline.run(plan))?;
        let logits = [&self.room, &self.second].map(|room| &room.activations.logits[..]);
        self.joined = Some(logits.concat());
        Ok(())
    }
}
