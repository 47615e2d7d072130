//! The experts' weights on a device with memory of its own: as many as a budget holds, the rest uploaded when used.
//!
//! An expert's three matrices are one *slot*, and slots are what is kept, least recently used out first. Uploads go
//! through a queue of their own and a few staging buffers, which are filled in turns: while one is copied to the
//! device, the next is filled, and kernels of other experts run. Events order what must be ordered: kernels wait for
//! the uploads of the experts they use, and an upload waits for the kernels that last used its slot. Nothing waits on
//! the host, but for a staging buffer that is to be filled while it is still copied.
//!
//! On a device that shares the CPU's memory there is nothing to upload: [`ExpertMemory`] is then no cache. Nor is it where
//! all experts fit.

mod held;
mod history;
mod lru;
mod options;
mod settings;
mod state;
mod statistics;
mod upload;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

pub use self::held::HeldExperts;
use self::history::History;
use self::lru::Slots;
pub use self::options::{CacheOptions, ExpertId, ExpertShape, Prefetch};
pub use self::settings::{ExpertCacheSettings, ModelBytes};
use self::state::{Contents, Ring, State};
pub use self::statistics::CacheStatistics;
use self::statistics::Timeline;
use crate::cl::{Buffer, Context, Queue};
use crate::error::{GpuError, Result};
use crate::gpu::{Gpu, Scope};
use crate::memory::Sharing;

/// Matrices of an expert: gate, up, down.
pub const MATRICES: usize = 3;
/// Bytes of a number of the table of places.
const PLACE_BYTES: usize = size_of::<u64>();
/// Tables of places that may be on their way to the device.
const TABLES_UNDER_WAY: usize = 8;

/// Where a device has a model's experts.
#[derive(Debug)]
pub enum ExpertMemory {
    /// In the memory that it shares with the CPU: all of them, without a copy.
    InPlace,
    /// In memory of its own, all of them.
    Whole,
    /// In memory of its own, some of them at a time.
    Cache(Box<ExpertCache>),
}

impl ExpertMemory {
    /// A cache where the device's [settings](Gpu::expert_settings) and memory ask for one.
    ///
    /// # Errors
    /// Those of [`ExpertCacheSettings::options`] and [`ExpertCache::new`].
    pub fn new(gpu: &Gpu, model: ModelBytes) -> Result<Self> {
        if gpu.memory().sharing() != Sharing::None {
            return Ok(Self::InPlace);
        }
        let info = gpu.device().info();
        let settings = gpu.expert_settings();
        Ok(match settings.options(model, info.memory, info.max_allocation)? {
            None => Self::Whole,
            Some(options) => Self::Cache(Box::new(ExpertCache::new(gpu, model.experts, options)?)),
        })
    }
}

impl ExpertMemory {
    /// The cache, where there is one.
    pub fn cache(&self) -> Option<&ExpertCache> {
        match self {
            Self::Cache(cache) => Some(cache),
            Self::InPlace | Self::Whole => None,
        }
    }
}

impl fmt::Display for ExpertMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InPlace => {
                f.write_str("no expert cache: the device reads experts where they are")
            }
            Self::Whole => f.write_str("no expert cache: all experts fit the device's memory"),
            Self::Cache(cache) => write!(
                f,
                "expert cache: {} of {} experts, {} MiB",
                cache.slots(),
                cache.shape.n_layers * cache.shape.n_experts,
                (cache.slots() * cache.slot_bytes) >> 20,
            ),
        }
    }
}

/// An LRU cache of experts in a device's own memory.
#[derive(Debug)]
pub struct ExpertCache {
    shape: ExpertShape,
    slot_bytes: usize,
    prefetch: Option<Prefetch>,
    experts_per_buffer: usize,
    state: RefCell<State>,
    /// All slots.
    weights: Arc<Buffer>,
    /// For each layer, matrix and expert: bytes from the start of `weights`; what is not there has 0.
    places: Arc<Buffer>,
    uploads: Arc<Queue>,
    context: Arc<Context>,
}

impl ExpertCache {
    /// A cache without experts.
    ///
    /// # Errors
    /// When the budget does not hold the experts of one layer, there is no staging buffer, or the memory cannot be had.
    pub fn new(gpu: &Gpu, shape: ExpertShape, options: CacheOptions) -> Result<Self> {
        let slot_bytes = shape.slot_bytes();
        let all = shape.n_layers * shape.n_experts;
        let slots = (options.budget / slot_bytes).min(all);
        if slots < shape.n_experts {
            return Err(GpuError::Cache(format!(
                "budget: expected at least {} bytes, the experts of a layer, found {}",
                slot_bytes * shape.n_experts,
                options.budget
            )));
        }
        let CacheOptions { staging_buffers, experts_per_buffer, prefetch, .. } = options;
        if staging_buffers == 0 || experts_per_buffer == 0 {
            return Err(GpuError::Cache(format!(
                "staging: expected at least one buffer of one expert, \
                 found {staging_buffers} of {experts_per_buffer}"
            )));
        }
        // What is known of overlap is known from the times of both queues.
        gpu.always_keep_times()?;
        let (context, kernels) = (Arc::clone(gpu.context()), gpu.queue());
        let uploads = Arc::new(Queue::new(&context, gpu.device().id, true)?);
        let table_bytes = MATRICES * shape.n_experts * PLACE_BYTES;
        let chunk = experts_per_buffer * slot_bytes;
        let state = State {
            slots: Slots::new(slots, shape.n_layers, shape.n_experts),
            contents: (0..slots).map(|_| Contents::default()).collect(),
            history: History::new(shape.n_layers, shape.n_experts),
            staging: Ring::new(&context, &uploads, staging_buffers, chunk)?,
            tables: Ring::new(&context, kernels, TABLES_UNDER_WAY, table_bytes)?,
            told: vec![vec![None; shape.n_experts]; shape.n_layers],
            statistics: CacheStatistics::default(),
            timeline: Timeline::default(),
        };
        let places = Buffer::new(&context, shape.n_layers * table_bytes)?;
        kernels.write(&places, 0, &vec![0; shape.n_layers * table_bytes])?;
        Ok(Self {
            shape,
            slot_bytes,
            prefetch,
            experts_per_buffer,
            state: RefCell::new(state),
            weights: Arc::new(Buffer::new(&context, slots * slot_bytes)?),
            places: Arc::new(places),
            uploads,
            context,
        })
    }

    /// Experts that it holds at most.
    pub fn slots(&self) -> usize {
        self.state.borrow().slots.len()
    }

    /// What it has done so far, once everything that was enqueued is done: waits for uploads. Call it between scopes.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn statistics(&self) -> Result<CacheStatistics> {
        self.uploads.finish()?;
        let state = &mut *self.state.borrow_mut();
        state.timeline.settle(&mut state.statistics)?;
        Ok(state.statistics)
    }

    /// Begins with the kernels that use a layer's experts, of which none is held yet.
    ///
    /// # Panics
    /// When the scope is another device's.
    pub fn hold<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        layer: usize,
    ) -> HeldExperts<'scope> {
        assert!(Arc::ptr_eq(&self.context, scope.gpu().context()), "experts of another device");
        HeldExperts::none(self, scope.gpu().queue(), layer)
    }

    /// Whether an expert is on the device, or on its way.
    pub fn has(&self, layer: usize, expert: usize) -> bool {
        self.state.borrow().slots.find(ExpertId { layer, expert }).is_some()
    }

    /// Experts of a staging buffer: as many as are best uploaded while others are computed with.
    pub fn experts_per_buffer(&self) -> usize {
        self.experts_per_buffer
    }

    /// Experts that are best uploaded ahead at a time: what a staging buffer holds, where any are.
    pub fn prefetched_at_once(&self) -> usize {
        if self.prefetch.is_some() { self.experts_per_buffer } else { 0 }
    }

    /// Uploads up to `count` of a layer's experts that are not there, of its likeliest `count`, while other kernels
    /// run. None is uploaded where every slot is in use.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn prefetch(
        &self,
        layer: usize,
        count: usize,
        load: impl FnMut(ExpertId, [&mut [u8]; MATRICES]),
    ) -> Result<()> {
        let state = &mut *self.state.borrow_mut();
        let Some(by) = self.prefetch else { return Ok(()) };
        let likeliest = state.history.likeliest(layer, by);
        // What is there of the layer is likely to be used too, and often the least recently used of all.
        let there: Vec<usize> = likeliest.iter().filter_map(|&id| state.slots.find(id)).collect();
        there.iter().for_each(|&slot| state.slots.hold(slot));
        let mut missing = Vec::new();
        for id in likeliest.into_iter().take(count) {
            if state.slots.find(id).is_none() {
                let Some(placed) = state.place(id) else { break };
                state.contents[placed.slot].ahead = true;
                state.statistics.prefetched += 1;
                missing.push((id, placed.slot));
            }
        }
        there.iter().for_each(|&slot| state.slots.release(slot));
        self.upload(state, &missing, load)
    }
}
