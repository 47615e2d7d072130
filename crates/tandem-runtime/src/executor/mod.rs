//! The forward pass, for a batch of tokens of one or more sequences.
//!
//! Tokens are handed in as they come: a prompt in batches, an answer one by one. Keys and values of earlier tokens
//! come from the KV cache, so a batch of one reads every dense weight and two experts of each layer once, and
//! nothing else. Tokens of several sequences share the weights that are read; each attends to its own sequence's cache.
//!
//! A pass follows a [`Plan`](crate::plan::Plan), the flat list of its operations ([`pass`]). What an operation reads and
//! writes lies in [`activations`]; `cpu/` has the operations as the CPU computes them.

mod activations;
mod attempt;
mod batch;
mod both;
mod cpu;
mod directing;
mod fallback;
mod igpu;
mod input;
mod instruments;
mod measure;
mod output;
mod packet;
mod pass;
mod pipeline;
mod threads;

use std::sync::Arc;

use tandem_cpu::onednn::OneDnn;
use tandem_cpu::ops::{Largest, Rope};
use tandem_cpu::{Cpu, Isa, ThreadTeam};
use tandem_gpu::{CacheStatistics, ExpertCache, Gpu, GpuError};
use tandem_memory::{KvCache, KvPool, KvShape, KvType, SystemMemory};

use crate::error::{Result, RuntimeError};
use crate::instrumentation::Instrumentation;
use crate::model::Model;
use crate::plan::Planner;
use crate::policy::{Policy, Static};
use crate::profile::{Operation, Profile};
use directing::Tables;
use fallback::Fallback;
use igpu::{Igpu, Times};
use pipeline::Room;

pub(crate) use activations::{Activation, Memory};
pub use batch::Segment;
pub(crate) use batch::check_ids;
pub use fallback::Degradation;
pub use instruments::Instruments;
pub use output::{LogitsFor, RouterTrace, evaluate};
pub use packet::{OperationInput, OperationRequest, OperationResult, OperationShape};
pub use threads::Threads;

/// Tokens of a prompt that go through the model together. Each of 16 experts then has 64 of them to use its weights for.
pub const DEFAULT_BATCH: usize = 512;

/// Computes with one model.
pub struct Executor {
    model: Arc<Model>,
    cpu: Cpu,
    igpu: Option<Igpu>,
    gpu_failure: Option<GpuError>,
    threads: Threads,
    planner: Planner,
    rope: Rope,
    batch: usize,
    memory: Memory,
    room: Room,
    /// Of the second micro-batch, where a pass is cut into two.
    second: Room,
    /// Logits of both.
    joined: Option<Vec<f32>>,
    /// How often the devices have computed different micro-batches at the same time.
    overlaps: u64,
    /// Room for results of two devices, where there are two.
    parts: Activation<f32>,
    profile: Profile,
    instruments: Instruments,
    gpu_times_in_profile: bool,
    policy: Box<dyn Policy>,
    tables: Option<Tables>,
    /// What the memory's bandwidth is watched by.
    watch: Option<Arc<Instrumentation>>,
    /// Texts that wait for their turn.
    waiting: usize,
    /// What micro-batches have at least.
    least: usize,
    /// The same, where passes are cut into two.
    pipelining: Option<usize>,
    fallback: Fallback,
}

impl Executor {
    /// An executor on the CPU with a team of `threads` of its own that takes up to `batch` tokens at once.
    ///
    /// # Errors
    /// Where the threads cannot be started.
    pub fn new(model: Arc<Model>, threads: usize, batch: usize) -> Result<Self> {
        let team =
            ThreadTeam::new(threads).map_err(|source| RuntimeError::Threads { threads, source })?;
        Ok(Self::with_cpu(model, Cpu::new(team), Threads::same(threads), batch))
    }

    /// An executor on the CPU whose team others may use too: each [`Self::forward`] is one turn with it. Where the team
    /// has fewer members than `threads` asks for, with all of them.
    pub fn with_cpu(model: Arc<Model>, cpu: Cpu, threads: Threads, batch: usize) -> Self {
        let planner = Planner::cpu(model.config());
        Self::assemble(model, cpu, threads, batch, planner, Arc::new(SystemMemory))
    }

    /// An executor that computes on the CPU, on a GPU, or on both, as `planner` says. The model must be
    /// [loaded](Model::load_in) into the GPU's [memory](Gpu::memory), and KV caches be of [`Self::kv_cache`].
    ///
    /// # Errors
    /// When the GPU cannot use the weights, or its memory cannot be had.
    pub fn with_devices(
        model: Arc<Model>,
        cpu: Cpu,
        threads: Threads,
        batch: usize,
        gpu: Option<Gpu>,
        planner: Planner,
    ) -> Result<Self> {
        let Some(gpu) = gpu else {
            let memory = Arc::new(SystemMemory);
            return Ok(Self::assemble(model, cpu, threads, batch, planner, memory));
        };
        let memory = Arc::new(gpu.memory().clone());
        let igpu = Igpu::new(gpu, &model)?;
        let executor = Self::assemble(model, cpu, threads, batch, planner, memory);
        Ok(Self { igpu: Some(igpu), ..executor })
    }

    fn assemble(
        model: Arc<Model>,
        cpu: Cpu,
        threads: Threads,
        batch: usize,
        planner: Planner,
        memory: Memory,
    ) -> Self {
        let config = model.config();
        let rope = Rope::new(config.head_dim, config.rope_theta);
        let most = |threads: usize| threads.clamp(1, cpu.team().size());
        Self {
            threads: Threads { decode: most(threads.decode), prefill: most(threads.prefill) },
            planner,
            cpu,
            igpu: None,
            gpu_failure: None,
            rope,
            batch: batch.max(1),
            memory,
            room: Room::default(),
            second: Room::default(),
            joined: None,
            overlaps: 0,
            parts: Activation::default(),
            profile: Profile::default(),
            instruments: Instruments::default(),
            gpu_times_in_profile: false,
            policy: Box::new(Static),
            tables: None,
            watch: None,
            waiting: 0,
            least: 1,
            pipelining: None,
            fallback: Fallback::default(),
            model,
        }
    }

    /// The GPU that takes part, if one does.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.igpu.as_ref().map(Igpu::gpu)
    }

    /// The plans that passes follow.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Follows other plans from now on, as they are.
    pub fn set_planner(&mut self, planner: Planner) {
        self.planner = planner;
        self.policy = Box::new(Static);
        self.tables = None;
    }

    /// What passes are watched by, and held back by.
    pub fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    /// Has passes watched, and held back, from now on. Where events are recorded, the GPU's are by its own clock.
    pub fn set_instruments(&mut self, instruments: Instruments) {
        self.instruments = instruments;
        self.keep_gpu_times();
    }

    /// Why the GPU was put aside, if it was: what it failed at was computed on the CPU, and so is everything since.
    pub fn gpu_failure(&self) -> Option<&GpuError> {
        self.gpu_failure.as_ref()
    }

    /// Whether the GPU uses the model's weights where they are, by its driver's own account; not so where there is none.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn weights_are_in_place(&self) -> Result<bool> {
        let weights = self.model.weights().bytes();
        Ok(self.gpu().map(|gpu| gpu.is_in_place(weights)).transpose()?.unwrap_or(false))
    }

    /// Whether the [profile](Self::profile) is to have the times that kernels took on the GPU, which costs it a little.
    pub fn record_gpu_times(&mut self, wanted: bool) {
        self.gpu_times_in_profile = wanted;
        self.keep_gpu_times();
    }

    fn keep_gpu_times(&mut self) {
        let times = match (self.gpu_times_in_profile, self.instruments.recorder().is_on()) {
            (true, _) => Times::Kernels,
            (false, true) => Times::Steps,
            (false, false) => Times::Off,
        };
        let kept = self.igpu.as_mut().map(|igpu| igpu.keep_times(times));
        if let Some(Err(failure)) = kept {
            self.put_aside(failure);
        }
    }

    /// Where the GPU has the experts, in words; none where there is no GPU.
    pub fn expert_memory(&self) -> Option<String> {
        self.igpu.as_ref().map(|igpu| igpu.expert_memory().to_string())
    }

    /// What the GPU's cache of experts has done so far; none where there is no such cache.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn expert_cache(&self) -> Result<Option<CacheStatistics>> {
        let cache = self.igpu.as_ref().and_then(|igpu| igpu.expert_memory().cache());
        Ok(cache.map(ExpertCache::statistics).transpose()?)
    }

    /// Why the GPU does not compute an operation, whatever the plan says; `None` where it does, or where there is no GPU.
    pub fn gpu_refusal(&self, operation: Operation) -> Option<&str> {
        self.igpu.as_ref()?.refusal(operation)
    }

    /// What KV pages of this model look like.
    pub fn kv_shape(&self, kind: KvType) -> KvShape {
        let c = self.model.config();
        KvShape::new(c.n_layers, c.n_kv_heads, c.head_dim, kind)
    }

    /// A pool of KV pages for `tokens` tokens of all its sequences together, in memory that every device uses.
    ///
    /// # Errors
    /// Where memory cannot be had, or the type does not suit the model.
    pub fn kv_pool(&self, tokens: usize, kind: KvType) -> Result<KvPool> {
        Ok(KvPool::new(&*self.memory, self.kv_shape(kind), tokens)?)
    }

    /// An empty KV cache with room for `capacity` tokens and a pool of its own, in memory that every device uses.
    ///
    /// # Errors
    /// Where memory cannot be had, or the type does not suit the model.
    pub fn kv_cache(&self, capacity: usize, kind: KvType) -> Result<KvCache> {
        Ok(KvCache::in_pool(&self.kv_pool(capacity, kind)?, capacity))
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Threads it computes with.
    pub fn threads(&self) -> Threads {
        self.threads
    }

    /// The team.
    pub fn team(&self) -> &Arc<ThreadTeam> {
        self.cpu.team()
    }

    /// Instruction set it computes with.
    pub fn isa(&self) -> Isa {
        self.cpu.isa()
    }

    /// Has oneDNN compute products of prompts on the CPU from now on, or not any more.
    pub fn set_onednn(&mut self, onednn: Option<Arc<OneDnn>>) {
        self.cpu.set_onednn(onednn);
    }

    /// oneDNN, where it computes products of prompts.
    pub fn onednn(&self) -> Option<&OneDnn> {
        self.cpu.onednn()
    }

    /// Where the time went since it was last cleared.
    pub fn profile(&mut self) -> &mut Profile {
        &mut self.profile
    }

    /// Tokens that [`Self::forward`] takes at most.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Runs `ids`, which follow the tokens that are in `kv` already, and leaves their keys and values there.
    /// Answers logits, `tokens x vocab`, for the tokens that `wanted` names.
    ///
    /// # Errors
    /// Where an id is beyond the vocabulary or the tokens do not fit the cache; `kv` is then as before.
    ///
    /// # Panics
    /// If there are no ids or more than [`Self::batch`].
    pub fn forward(
        &mut self,
        ids: &[u32],
        kv: &mut KvCache,
        wanted: LogitsFor,
        trace: Option<&mut RouterTrace>,
    ) -> Result<&[f32]> {
        self.pass(&mut [Segment { ids, kv, wanted }], &[], trace)?;
        Ok(self.logits())
    }

    /// As [`Self::forward`]; answers, for each token that `wanted` names, its `count` largest logits with their ids, the
    /// largest first. Ids that are not `allowed` and logits that are not finite are left out. Of equal logits the lower
    /// id comes first.
    ///
    /// # Errors
    /// As [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn forward_top(
        &mut self,
        ids: &[u32],
        kv: &mut KvCache,
        wanted: LogitsFor,
        count: usize,
        allowed: &(dyn Fn(u32) -> bool + Sync),
    ) -> Result<Vec<Vec<(f32, u32)>>> {
        let tokens = wanted.tokens(ids.len());
        let largest: Vec<_> = tokens.map(|_| Largest::new(count, allowed)).collect();
        self.pass(&mut [Segment { ids, kv, wanted }], &largest, None)?;
        Ok(largest.into_iter().map(Largest::into_sorted).collect())
    }

    /// Runs tokens of several sequences together, so that every dense weight and every expert is read once for all of
    /// them. Answers logits, `tokens x vocab`, for the tokens that the segments want, in their order. Where `largest` is
    /// not empty, it has one for each of these tokens, and keeps what is largest of its logits.
    ///
    /// # Errors
    /// Where an id is beyond the vocabulary or tokens do not fit their cache; all caches are then as before.
    ///
    /// # Panics
    /// If a segment has no ids, or all of them together none or more than [`Self::batch`], or `largest` is of another
    /// number.
    pub fn forward_segments(
        &mut self,
        segments: &mut [Segment<'_>],
        largest: &[Largest<'_>],
    ) -> Result<&[f32]> {
        self.pass(segments, largest, None)?;
        Ok(self.logits())
    }
}
