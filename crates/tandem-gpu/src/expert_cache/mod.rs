//! The experts' weights on a device with memory of its own: as many as a budget holds, the rest uploaded when used.
//!
//! An expert's three matrices are one *slot*, and slots are what is kept, least recently used out first. Uploads go
//! through a queue of their own and a few staging buffers, which are filled in turns: while one is copied to the
//! device, the next is filled, and kernels of other experts run. Events order what must be ordered: kernels wait for
//! the uploads of the experts they use, and an upload waits for the kernels that last used its slot. Nothing waits on
//! the host, but for a staging buffer that is to be filled while it is still copied.
//!
//! On a device that shares the CPU's memory there is nothing to upload: [`ExpertMemory`] is then no cache.

mod history;
mod lru;
mod statistics;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::history::History;
use self::lru::{Placed, Slots};
pub use self::statistics::CacheStatistics;
use self::statistics::Timeline;
use crate::cl::{Buffer, Context, Event, Queue};
use crate::error::{GpuError, Result};
use crate::gpu::{Gpu, Region, Scope};
use crate::memory::Sharing;
use crate::pinned::Staging;

/// Matrices of an expert: gate, up, down.
pub const MATRICES: usize = 3;
/// Matrices begin at multiples of this many bytes.
const ALIGNMENT: usize = 64;
/// Bytes of a number of the table of places.
const PLACE_BYTES: usize = size_of::<u64>();
/// Tables of places that may be on their way to the device.
const TABLES_UNDER_WAY: usize = 8;

/// An expert of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpertId {
    /// Number of the layer.
    pub layer: usize,
    /// Number of the expert in it.
    pub expert: usize,
}

/// What a model's experts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Layers.
    pub n_layers: usize,
    /// Experts of a layer.
    pub n_experts: usize,
    /// Bytes of an expert's gate, up and down matrices.
    pub matrix_bytes: [usize; MATRICES],
}

/// Which experts are uploaded before they are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefetch {
    /// The layer's most used so far; of equals the one used last.
    #[default]
    Predict,
    /// By number.
    Sequential,
}

/// How a cache is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of the device's memory for experts.
    pub budget: usize,
    /// Staging buffers.
    pub staging_buffers: usize,
    /// Experts of a staging buffer.
    pub experts_per_buffer: usize,
    /// Which experts are uploaded ahead.
    pub prefetch: Prefetch,
}

impl CacheOptions {
    /// Two staging buffers of two experts, and prediction.
    pub fn with_budget(budget: usize) -> Self {
        Self { budget, staging_buffers: 2, experts_per_buffer: 2, prefetch: Prefetch::Predict }
    }
}

/// Where a device has a model's experts.
#[derive(Debug)]
pub enum ExpertMemory {
    /// In the memory that it shares with the CPU: all of them, without a copy.
    InPlace,
    /// In memory of its own.
    Cache(Box<ExpertCache>),
}

impl ExpertMemory {
    /// A cache where the device needs one.
    ///
    /// # Errors
    /// Those of [`ExpertCache::new`].
    pub fn new(gpu: &Gpu, shape: ExpertShape, options: CacheOptions) -> Result<Self> {
        if gpu.memory().sharing() == Sharing::None {
            Ok(Self::Cache(Box::new(ExpertCache::new(gpu, shape, options)?)))
        } else {
            Ok(Self::InPlace)
        }
    }
}

impl fmt::Display for ExpertMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InPlace => {
                f.write_str("no expert cache: the device reads experts where they are")
            }
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
    prefetch: Prefetch,
    experts_per_buffer: usize,
    state: RefCell<State>,
    /// All slots.
    weights: Arc<Buffer>,
    /// For each layer, matrix and expert: bytes from the start of `weights`; what is not there has 0.
    places: Arc<Buffer>,
    uploads: Arc<Queue>,
    context: Arc<Context>,
}

/// What changes from use to use.
#[derive(Debug)]
struct State {
    slots: Slots,
    contents: Vec<Contents>,
    history: History,
    staging: Ring,
    tables: Ring,
    /// For each layer, the slots of its experts as the device was last told.
    told: Vec<Vec<Option<usize>>>,
    statistics: CacheStatistics,
    timeline: Timeline,
}

/// What there is to know of what is in a slot.
#[derive(Debug, Default)]
struct Contents {
    /// Its upload, until kernels have been made to wait for it.
    upload: Option<Arc<Event>>,
    /// The end of the kernels that used it last.
    last_use: Option<Arc<Event>>,
    /// Whether it was uploaded ahead, and not used since.
    ahead: bool,
}

/// Staging buffers that are used in turns.
#[derive(Debug)]
struct Ring {
    buffers: Vec<Staging>,
    next: usize,
}

impl Ring {
    fn new(context: &Context, queue: &Arc<Queue>, count: usize, bytes: usize) -> Result<Self> {
        let buffers =
            (0..count).map(|_| Staging::new(context, queue, bytes)).collect::<Result<_>>()?;
        Ok(Self { buffers, next: 0 })
    }

    /// The one whose copies are likeliest to be done.
    fn next(&mut self) -> &mut Staging {
        let next = self.next;
        self.next = (next + 1) % self.buffers.len();
        &mut self.buffers[next]
    }
}

impl ExpertCache {
    /// A cache without experts.
    ///
    /// # Errors
    /// When the budget does not hold the experts of one layer, there is no staging buffer, or the memory cannot be had.
    pub fn new(gpu: &Gpu, shape: ExpertShape, options: CacheOptions) -> Result<Self> {
        let slot_bytes: usize =
            shape.matrix_bytes.iter().map(|b| b.next_multiple_of(ALIGNMENT)).sum();
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
        let (context, kernels) = (Arc::clone(gpu.context()), gpu.queue());
        let uploads = Arc::new(Queue::new(&context, gpu.device().id)?);
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

    /// Has the named experts of a layer on the device for the kernels that `work` enqueues. Those that are not there
    /// are uploaded: `load` copies an expert's gate, up and down matrices.
    ///
    /// # Errors
    /// Those of `work`; when the driver fails; when all slots are in use.
    ///
    /// # Panics
    /// When there is no such layer or expert, or the scope is another device's.
    pub fn with_experts<'scope, T>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        layer: usize,
        experts: &[usize],
        load: impl FnMut(ExpertId, [&mut [u8]; MATRICES]),
        work: impl FnOnce(&ResidentExperts<'scope>) -> Result<T>,
    ) -> Result<T> {
        assert!(Arc::ptr_eq(&self.context, scope.gpu().context()), "experts of another device");
        let mut experts = experts.to_vec();
        experts.sort_unstable();
        experts.dedup();
        let kernels = scope.gpu().queue();
        let mut held = Held { cache: self, kernels, slots: Vec::new() };
        held.take(layer, &experts, load)?;
        work(&ResidentExperts { cache: self, layer })
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
        let mut missing = Vec::new();
        for id in state.history.likeliest(layer, self.prefetch).into_iter().take(count) {
            if state.slots.find(id).is_none() {
                let Some(placed) = state.place(id) else { break };
                state.contents[placed.slot].ahead = true;
                state.statistics.prefetched += 1;
                missing.push((id, placed.slot));
            }
        }
        self.upload(state, &missing, load)
    }

    /// Copies experts into their slots. Where that fails, the slots are nobody's.
    fn upload(
        &self,
        state: &mut State,
        missing: &[(ExpertId, usize)],
        mut load: impl FnMut(ExpertId, [&mut [u8]; MATRICES]),
    ) -> Result<()> {
        for batch in missing.chunks(self.experts_per_buffer) {
            if let Err(error) = self.upload_batch(state, batch, &mut load) {
                missing.iter().for_each(|(_, slot)| state.slots.clear(*slot));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Copies as many experts as a staging buffer holds.
    fn upload_batch(
        &self,
        state: &mut State,
        batch: &[(ExpertId, usize)],
        load: &mut impl FnMut(ExpertId, [&mut [u8]; MATRICES]),
    ) -> Result<()> {
        let staging = state.staging.next();
        for ((id, _), room) in batch.iter().zip(staging.refill()?.chunks_exact_mut(self.slot_bytes))
        {
            load(*id, self.matrices(room));
        }
        for (index, (_, slot)) in batch.iter().enumerate() {
            let from = index * self.slot_bytes..(index + 1) * self.slot_bytes;
            let contents = &mut state.contents[*slot];
            let at = slot * self.slot_bytes;
            let copy = staging.copy_to(from, &self.weights, at, contents.last_use.as_slice())?;
            contents.last_use = None;
            contents.upload = Some(Arc::clone(&copy));
            state.timeline.upload(copy);
            state.statistics.bytes += self.slot_bytes as u64;
        }
        self.uploads.flush()
    }

    /// An expert's matrices within its slot.
    fn matrices<'a>(&self, slot: &'a mut [u8]) -> [&'a mut [u8]; MATRICES] {
        let mut rest = slot;
        self.shape.matrix_bytes.map(|bytes| {
            let (matrix, after) =
                std::mem::take(&mut rest).split_at_mut(bytes.next_multiple_of(ALIGNMENT));
            rest = after;
            &mut matrix[..bytes]
        })
    }

    /// Where a matrix begins in its slot.
    fn offset(&self, matrix: usize) -> usize {
        self.shape.matrix_bytes[..matrix].iter().map(|b| b.next_multiple_of(ALIGNMENT)).sum()
    }
}

impl State {
    fn place(&mut self, id: ExpertId) -> Option<Placed> {
        let placed = self.slots.place(id)?;
        self.statistics.evictions += u64::from(placed.evicted.is_some());
        self.contents[placed.slot].ahead = false;
        Some(placed)
    }

    /// Tells the device, in the order of kernels, where a layer's experts are, if that has changed.
    fn tell(&mut self, cache: &ExpertCache, layer: usize) -> Result<()> {
        let n_experts = cache.shape.n_experts;
        let ids = (0..n_experts).map(|expert| ExpertId { layer, expert });
        let now: Vec<Option<usize>> = ids.map(|id| self.slots.find(id)).collect();
        if self.told[layer] == now {
            return Ok(());
        }
        let table = self.tables.next();
        let mut rest = table.refill()?;
        for matrix in 0..MATRICES {
            for slot in &now {
                let place = slot.map_or(0, |slot| slot * cache.slot_bytes + cache.offset(matrix));
                let (number, after) = rest.split_at_mut(PLACE_BYTES);
                number.copy_from_slice(&(place as u64).to_le_bytes());
                rest = after;
            }
        }
        let bytes = MATRICES * n_experts * PLACE_BYTES;
        table.copy_to(0..bytes, &cache.places, layer * bytes, &[])?;
        self.told[layer] = now;
        Ok(())
    }
}

/// Slots that kernels are being enqueued for.
struct Held<'a> {
    cache: &'a ExpertCache,
    kernels: &'a Queue,
    slots: Vec<usize>,
}

impl Held<'_> {
    /// Has the experts there, and makes kernels wait for those on their way.
    fn take(
        &mut self,
        layer: usize,
        experts: &[usize],
        load: impl FnMut(ExpertId, [&mut [u8]; MATRICES]),
    ) -> Result<()> {
        let state = &mut *self.cache.state.borrow_mut();
        state.timeline.settle(&mut state.statistics)?;
        state.history.record(layer, experts);
        // Those that are there are held before others take slots.
        let mut missing = Vec::new();
        for id in experts.iter().map(|&expert| ExpertId { layer, expert }) {
            let Some(slot) = state.slots.find(id) else {
                missing.push(id);
                continue;
            };
            self.hold(state, slot);
            state.slots.touch(slot);
            state.statistics.hits += 1;
            let ahead = std::mem::take(&mut state.contents[slot].ahead);
            state.statistics.prefetched_used += u64::from(ahead);
        }
        let mut placed = Vec::new();
        for id in missing {
            let Some(Placed { slot, .. }) = state.place(id) else {
                placed.iter().for_each(|(_, slot)| state.slots.clear(*slot));
                let slots = state.slots.len();
                return Err(GpuError::Cache(format!("all of {slots} slots are in use")));
            };
            self.hold(state, slot);
            state.statistics.misses += 1;
            placed.push((id, slot));
        }
        self.cache.upload(state, &placed, load)?;
        state.tell(self.cache, layer)?;
        let uploads: Vec<_> =
            self.slots.iter().filter_map(|&slot| state.contents[slot].upload.take()).collect();
        if !uploads.is_empty() {
            let ready = self.kernels.marker()?;
            self.kernels.wait_for(&uploads)?;
            state.timeline.wait(ready, uploads);
        }
        Ok(())
    }

    fn hold(&mut self, state: &mut State, slot: usize) {
        state.slots.hold(slot);
        self.slots.push(slot);
    }
}

impl Drop for Held<'_> {
    /// Marks the end of the kernels, which the next upload to each slot waits for; also where enqueuing them has
    /// failed or panicked.
    fn drop(&mut self) {
        let end =
            self.kernels.marker().and_then(|end| self.kernels.flush().map(|()| Arc::new(end)));
        if end.is_err() {
            // Without a marker, the kernels are over before anything else happens; or the device is lost.
            let _lost = self.kernels.finish();
        }
        let state = &mut *self.cache.state.borrow_mut();
        for &slot in &self.slots {
            state.contents[slot].last_use = end.as_ref().ok().map(Arc::clone);
            state.slots.release(slot);
        }
    }
}

/// Experts of a layer that are on the device, or will be before the kernels run that are enqueued now.
#[derive(Debug)]
pub struct ResidentExperts<'scope> {
    cache: &'scope ExpertCache,
    layer: usize,
}

impl<'scope> ResidentExperts<'scope> {
    /// All slots, and where a matrix of each expert begins in them: gate, up or down.
    pub(crate) fn places(&self, matrix: usize) -> (Region<'scope, u8>, Region<'scope, u64>) {
        let ExpertCache { shape, slot_bytes, weights, places, .. } = self.cache;
        let n_experts = shape.n_experts;
        let weights = Region::of_buffer(weights, self.cache.slots() * slot_bytes);
        let places = Region::of_buffer(places, shape.n_layers * MATRICES * n_experts);
        let first = (self.layer * MATRICES + matrix) * n_experts;
        (weights, places.slice(first..first + n_experts))
    }

    /// One matrix of an expert.
    ///
    /// # Panics
    /// When the expert is not there.
    pub fn matrix(&self, expert: usize, matrix: usize) -> Region<'scope, u8> {
        let ExpertCache { shape, slot_bytes, state, .. } = self.cache;
        let id = ExpertId { layer: self.layer, expert };
        let Some(slot) = state.borrow().slots.find(id) else { panic!("{id:?} is not there") };
        let first = slot * slot_bytes + self.cache.offset(matrix);
        self.places(matrix).0.slice(first..first + shape.matrix_bytes[matrix])
    }

    /// Bytes of a matrix of every expert.
    pub(crate) fn matrix_bytes(&self, matrix: usize) -> usize {
        self.cache.shape.matrix_bytes[matrix]
    }
}
