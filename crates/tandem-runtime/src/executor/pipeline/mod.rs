//! Two micro-batches in flight: while the GPU computes steps of one, the CPU computes steps of the other.
//!
//! The tokens of a pass are cut in two halves, which follow the same plan, each with activations of its own. They go
//! ahead in turns ([`schedule`]): the GPU is handed a run of steps of one, the CPU computes a run of the other meanwhile,
//! and then waits; after that they change places. A sequence may be cut as well: its later tokens then attend to the keys
//! and values that the earlier ones have just written.

mod schedule;

use std::ops::Range;

use tandem_cpu::Cpu;
use tandem_cpu::ops::{Largest, Rope};
use tandem_memory::KvCache;

use super::activations::{Activation, Activations};
use super::batch::Batch;
use super::igpu::Igpu;
use super::input::ProductInput;
use super::instruments::Instruments;
use super::output::RouterTrace;
use super::pass::Pass;
use crate::error::Result;
use crate::model::Model;
use crate::plan::{Placement, Plan, Step};
use crate::profile::{Operation, Profile};
use schedule::{Exclusions, Progress, Turn};

/// Memory of a micro-batch.
#[derive(Default)]
pub(super) struct Room {
    pub(super) activations: Activations,
    pub(super) input: ProductInput,
}

/// A micro-batch on its way.
pub(super) struct Lane<'a> {
    pub(super) room: &'a mut Room,
    pub(super) batch: &'a Batch,
    /// Which of the caches are those of its sequences.
    pub(super) caches: Range<usize>,
    pub(super) largest: &'a [Largest<'a>],
    pub(super) packet: u64,
}

/// What two micro-batches work with.
pub(super) struct Pipeline<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) igpu: &'a mut Igpu,
    pub(super) model: &'a Model,
    pub(super) rope: &'a Rope,
    pub(super) parts: &'a mut Activation<f32>,
    pub(super) profile: &'a mut Profile,
    pub(super) caches: Vec<&'a mut KvCache>,
    pub(super) trace: Option<&'a mut RouterTrace>,
    pub(super) instruments: &'a Instruments,
    pub(super) lanes: [Lane<'a>; 2],
}

/// Whether a plan has anything to compute on one device beside the other: both have steps of their own in the layers.
pub(super) fn is_worthwhile(plan: &Plan, igpu: &Igpu) -> bool {
    let of_layers = || plan.steps().filter(|step| step.layer.is_some());
    let on_gpu =
        |step: &Step| step.placement == Placement::Igpu && igpu.refusal(step.operation).is_none();
    of_layers().any(|step| step.placement == Placement::Cpu) && of_layers().any(|s| on_gpu(&s))
}

impl Pipeline<'_> {
    /// Computes all steps of both, but for the last ones of a micro-batch of which no logits are wanted. Answers how often
    /// both devices computed at the same time.
    pub(super) fn run(&mut self, plan: &Plan) -> Result<u64> {
        self.profile.begin();
        let resolved = |step| {
            let step = self.pass(0).resolved(step);
            self.pass(1).resolved(step)
        };
        let steps: Vec<Step> = plan.steps().map(resolved).collect();
        let last = steps.iter().position(|step| step.operation == Operation::FinalLayernorm);
        let ends = self.lanes.each_ref().map(|lane| match lane.batch.n_wanted() {
            0 => last.unwrap_or(steps.len()),
            _ => steps.len(),
        });
        for lane in 0..2 {
            self.pass(lane).prepare_igpu();
        }
        let (instruments, traced) = (self.instruments, self.trace.is_some());
        let heavy = |operation| instruments.is_heavy(operation);
        let exclusions = Exclusions { heavy: &heavy, traced };
        let (mut progress, mut overlaps) = (Progress { done: [0, 0], ends }, 0);
        while let Some(turn) = progress.next(&steps, exclusions) {
            match &turn {
                Turn::Alone { lane, steps: range } => {
                    self.pass(*lane).run_all(&steps[range.clone()])?;
                }
                Turn::Together { gpu_lane, on_gpu, on_cpu } => {
                    self.together(*gpu_lane, &steps[on_gpu.clone()], &steps[on_cpu.clone()])?;
                    overlaps += 1;
                }
            }
            progress.complete(&turn);
        }
        for lane in 0..2 {
            self.pass(lane).tell_end()?;
        }
        Ok(overlaps)
    }

    /// One micro-batch as if it were alone.
    fn pass(&mut self, lane: usize) -> Pass<'_> {
        let Lane { room, batch, caches, largest, packet } = &mut self.lanes[lane];
        Pass {
            cpu: self.cpu,
            igpu: Some(self.igpu),
            model: self.model,
            rope: self.rope,
            activations: &mut room.activations,
            parts: self.parts,
            input: &mut room.input,
            profile: self.profile,
            caches: reborrowed(&mut self.caches[caches.clone()]),
            largest,
            trace: self.trace.as_deref_mut(),
            batch,
            instruments: self.instruments,
            packet: *packet,
            gave_up: false,
        }
    }

    /// One micro-batch on the GPU, the other meanwhile on the CPU.
    fn together(&mut self, gpu_lane: usize, on_gpu: &[Step], on_cpu: &[Step]) -> Result<()> {
        if let Some(gpu) = self.igpu.own_memory() {
            // What comes between the CPU's steps is the CPU's.
            let room = &mut self.lanes[1 - gpu_lane].room;
            for step in on_cpu {
                room.activations.download(gpu, step.operation)?;
            }
        }
        let has = |steps: &[Step], operation| steps.iter().any(|step| step.operation == operation);
        let [first, second] = &mut self.lanes;
        let (gpu, cpu) = if gpu_lane == 0 { (first, second) } else { (second, first) };
        // Caches, and the trace, are one side's at a time: see `schedule`.
        let gpu_attends = has(on_gpu, Operation::AttentionCompute);
        let attends = if gpu_attends { &gpu.caches } else { &cpu.caches };
        let caches = reborrowed(&mut self.caches[attends.clone()]);
        let (gpu_caches, cpu_caches) =
            if gpu_attends { (caches, Vec::new()) } else { (Vec::new(), caches) };
        let trace = self.trace.as_deref_mut();
        let gpu_decides = has(on_gpu, Operation::ExpertSelection);
        let (gpu_trace, cpu_trace) = if gpu_decides { (trace, None) } else { (None, trace) };
        let (cpus, model, rope, instruments) = (self.cpu, self.model, self.rope, self.instruments);
        let meanwhile = |profile: &mut Profile| {
            let mut pass = Pass {
                cpu: cpus,
                igpu: None,
                model,
                rope,
                activations: &mut cpu.room.activations,
                parts: &mut Activation::default(),
                input: &mut cpu.room.input,
                profile,
                caches: cpu_caches,
                largest: cpu.largest,
                trace: cpu_trace,
                batch: cpu.batch,
                instruments,
                packet: cpu.packet,
                gave_up: false,
            };
            pass.run_all(on_cpu)
        };
        let mut pass = Pass {
            cpu: cpus,
            igpu: Some(self.igpu),
            model,
            rope,
            activations: &mut gpu.room.activations,
            parts: self.parts,
            input: &mut gpu.room.input,
            profile: self.profile,
            caches: gpu_caches,
            largest: gpu.largest,
            trace: gpu_trace,
            batch: gpu.batch,
            instruments,
            packet: gpu.packet,
            gave_up: false,
        };
        pass.watched(on_gpu, |pass| pass.on_igpu_beside(on_gpu, meanwhile))
    }
}

/// Caches, for a shorter time.
fn reborrowed<'s>(caches: &'s mut [&mut KvCache]) -> Vec<&'s mut KvCache> {
    caches.iter_mut().map(|kv| &mut **kv).collect()
}
