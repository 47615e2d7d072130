//! The operations of a pass as a GPU computes them.
//!
//! Steps are enqueued in a scope to which everything is lent that they need; the scope's end waits for all of them. So
//! a run of steps costs one wait, and a pass that is all on the GPU costs one.

mod cache;
mod cost;
mod lent;
mod products;
mod steps;
mod times;
mod weights;

use tandem_cpu::Cpu;
use tandem_gpu::ops::{self, Heads};
use tandem_gpu::{ExpertMemory, Gpu, GpuVec, Scope, Sharing};
use tandem_memory::KvCache;
use tandem_model::PhimoeConfig;

use super::input::ProductInput;
use super::pass::Pass;
use crate::error::Result;
use crate::model::Model;
use crate::plan::Step;
use crate::profile::{Operation, Profile};
use cache::DeviceCaches;
pub(super) use cost::cost;
use lent::Lent;
use products::InEightBits;
pub(super) use products::{Plain, Products};
use steps::Enqueue;
use times::StepTimes;
pub(super) use times::Times;
use weights::{DeviceWeights, missing_kernels};
pub(super) use weights::{Expert, of_layer};

/// A GPU, with what it keeps between passes.
pub(super) struct Igpu {
    gpu: Gpu,
    weights: DeviceWeights,
    room: Room,
    /// Why it does not compute an operation, by operation.
    refused: [Option<String>; Operation::ALL.len()],
    caches: DeviceCaches,
    times: StepTimes,
}

/// Memory that the GPU alone uses.
pub(super) struct Room {
    /// What attention makes of each span of keys, for caches up to a capacity.
    spans: GpuVec<f32>,
    capacity: usize,
}

impl Igpu {
    /// Takes a GPU into use.
    ///
    /// # Errors
    /// When memory cannot be had, or the model's weights are not where the GPU can use them.
    pub(super) fn new(gpu: Gpu, model: &Model) -> tandem_gpu::Result<Self> {
        let config = model.config();
        let weights = DeviceWeights::new(&gpu, model)?;
        gpu.scope(|scope| weights.lend(scope, model).map(drop))?;
        let room = Room { spans: gpu.zeros(1)?, capacity: 0 };
        let refused = Operation::ALL.map(|operation| match operation {
            Operation::AttentionCompute => ops::attention_heads_fault(heads(config)),
            _ => missing_kernels(model, operation),
        });
        let (caches, times) = (DeviceCaches::default(), StepTimes::default());
        Ok(Self { gpu, weights, room, refused, caches, times })
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The GPU, if it has memory of its own: everything it uses must be brought there, and back.
    pub(super) fn own_memory(&self) -> Option<&Gpu> {
        (self.gpu.memory().sharing() == Sharing::None).then_some(&self.gpu)
    }

    /// Where the experts are.
    pub(super) fn expert_memory(&self) -> &ExpertMemory {
        self.weights.expert_memory()
    }

    /// Lends weights for products of what `input` holds, or of activations in f32, that `work` enqueues, and waits for
    /// them at the end. Of the experts those are needed that are `used`.
    ///
    /// # Errors
    /// Those of `work`, and those of waiting.
    pub(super) fn products<'env, T>(
        &'env mut self,
        model: &'env Model,
        cpu: &'env Cpu,
        input: &'env ProductInput,
        used: &[usize],
        work: impl for<'scope> FnOnce(
            &'scope Scope<'scope, 'env>,
            Products<'scope, 'env>,
        ) -> tandem_gpu::Result<T>,
    ) -> tandem_gpu::Result<T> {
        let Self { gpu, weights, .. } = self;
        gpu.scope(|scope| {
            let (weights, there) = (weights.lend(scope, model)?, input.lend(scope)?);
            let input = InEightBits::only(there);
            work(scope, Products::new(scope, weights, cpu, input, used.to_vec()))
        })
    }

    /// Why the GPU does not compute an operation; none where it does.
    pub(super) fn refusal(&self, operation: Operation) -> Option<&str> {
        self.refused[operation as usize].as_deref()
    }
}

impl Room {
    /// Makes room for attention over each of some caches, one after the other.
    fn fit(
        &mut self,
        gpu: &Gpu,
        config: &PhimoeConfig,
        caches: &[&mut KvCache],
    ) -> tandem_gpu::Result<()> {
        let capacity = caches.iter().map(|kv| kv.capacity()).max().unwrap_or(0);
        if capacity > self.capacity {
            self.spans = ops::attention_spans(gpu, heads(config), capacity)?;
            self.capacity = capacity;
        }
        Ok(())
    }
}

impl Pass<'_> {
    /// Computes some steps on the GPU, and waits for them.
    pub(super) fn on_igpu(&mut self, steps: &[Step]) -> Result<()> {
        self.on_igpu_beside(steps, |_| Ok(()))
    }

    /// Computes some steps on the GPU, has the CPU do something meanwhile, and then waits for the GPU.
    pub(super) fn on_igpu_beside(
        &mut self,
        steps: &[Step],
        meanwhile: impl FnOnce(&mut Profile) -> Result<()>,
    ) -> Result<()> {
        let Some(igpu) = self.igpu.as_deref_mut() else {
            panic!("a plan for a GPU that is not there");
        };
        let (model, batch) = (self.model, self.batch);
        let attention = |step: &&Step| step.operation == Operation::AttentionCompute;
        let attended: Vec<usize> = steps
            .iter()
            .filter(attention)
            .map(|step| usize::from(step.layer.unwrap_or_default()))
            .collect();
        let (attends, own_memory) = (!attended.is_empty(), igpu.own_memory().is_some());
        if own_memory {
            self.activations.upload(&igpu.gpu)?;
        }
        if attends {
            igpu.caches.bring(&igpu.gpu, own_memory, &self.caches, &attended)?;
        }
        for &layer in &attended {
            for (part, kv) in batch.parts.iter().zip(&mut *self.caches) {
                kv.claim(layer, part.start, part.len())?;
            }
        }
        for &step in steps {
            let (bytes, arithmetic) = cost(model, batch, step, None);
            self.profile.given_to_gpu(step.operation, bytes, arithmetic);
        }
        igpu.room.fit(&igpu.gpu, model.config(), &self.caches)?;
        let used = self.activations.used_experts(igpu, steps)?;
        self.input.bring(&igpu.gpu)?;
        let (caches, activations) = (&mut *self.caches, &mut *self.activations);
        let (input, cpu) = (&mut *self.input, self.cpu);
        let (profile, mut marks) = (&mut *self.profile, Vec::with_capacity(steps.len()));
        let Igpu { gpu, weights, room: Room { spans, .. }, caches: known, .. } = &mut *igpu;
        let (first, mut beside) = (gpu.launches(), Ok(()));
        let left = gpu.scope(|scope| {
            let (weights, (room, there)) = (weights.lend(scope, model)?, input.lend_room(scope)?);
            let input = InEightBits { room: Some(room), there };
            let products = Products::new(scope, weights, cpu, input, used);
            let pages = if attends { known.lend(scope, caches)? } else { Vec::new() };
            let lent = Lent::new(scope, activations, spans, pages)?;
            let mut enqueue = Enqueue::new(scope, model.config(), products, lent, batch);
            for &step in steps {
                enqueue.step(step)?;
                marks.push((step.operation, scope.gpu().launches()));
                profile.lap(step.operation);
            }
            if let Some(&Step { operation: Operation::ExpertDispatch, layer, .. }) = steps.last() {
                enqueue.prefetch_experts(usize::from(layer.unwrap_or_default()))?;
            }
            scope.submit()?;
            beside = meanwhile(profile);
            Ok(enqueue.left())
        })?;
        beside?;
        self.input.left_by_gpu(left);
        let Some(&last) = steps.last() else { return Ok(()) };
        self.profile.waited(last.operation);
        igpu.take_times(self.profile, first, &marks)?;
        if own_memory {
            for (part, kv) in batch.parts.iter().zip(&mut *self.caches) {
                let positions = part.start..part.end();
                igpu.caches.bring_back(&igpu.gpu, kv, &attended, positions)?;
            }
            self.activations.download_results(&igpu.gpu, last.operation)?;
        }
        match last.operation {
            Operation::ExpertSelection => {
                self.record_choices(usize::from(last.layer.unwrap_or_default()));
            }
            Operation::LmHead => self.offer_best(),
            _ => {}
        }
        Ok(())
    }
}

/// The heads of a layer.
fn heads(config: &PhimoeConfig) -> Heads {
    Heads { queries: config.n_heads, kv: config.n_kv_heads, dim: config.head_dim }
}
