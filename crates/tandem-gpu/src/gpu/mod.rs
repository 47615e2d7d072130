//! A device at work: its queue, its kernels, and the scopes in which memory is lent to it.
//!
//! Kernels are enqueued and run while the CPU goes on. What they read and write is ordinary memory of the program, so
//! the borrow checker is asked to keep everyone else away from it: memory is lent to a [`Scope`], as with
//! `std::thread::scope`, and the scope's end waits for the device. Within a scope nothing is waited for, since the
//! queue keeps its kernels in order.
#![allow(unsafe_code)]

mod arg;
mod lent;
mod scope;
mod vec;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cl::{Context, Event, Kernel, Program, Queue};
use crate::device::Device;
use crate::error::{GpuError, Result};
use crate::expert_cache::ExpertCacheSettings;
use crate::fault::{Fault, Faults};
use crate::memory::{Place, SharedMemory, Sharing};
use crate::path::Path;
use crate::program::{ProgramCache, build};

pub(crate) use arg::Arg;
pub use lent::{Region, RegionMut};
pub use scope::Scope;
pub(crate) use scope::Work;
pub use vec::GpuVec;

/// How long a wait asks the device again and again before it sleeps: waking up takes longer than many a kernel.
const POLLING: Duration = Duration::from_micros(100);
/// How long a device may take for what it was given. Nothing that is sensible takes that long, and time counts in which
/// the program itself was stopped.
const PATIENCE: Duration = Duration::from_secs(600);

/// A device in use.
#[derive(Debug)]
pub struct Gpu {
    // Fields are dropped in this order: the context last.
    kernels: RefCell<HashMap<KernelKey, Kernel>>,
    programs: RefCell<HashMap<(&'static str, String), Program>>,
    times: RefCell<Option<Vec<Launched>>>,
    /// The newest command that nobody has waited for.
    newest: RefCell<Option<Arc<Event>>>,
    launches: Cell<usize>,
    waits: Cell<usize>,
    faults: Faults,
    queues: Queues,
    memory: SharedMemory,
    cache: Option<ProgramCache>,
    experts: ExpertCacheSettings,
    device: Device,
    path: Path,
    context: Arc<Context>,
}

/// The queue of kernels, and one that keeps their times, which takes some drivers longer.
#[derive(Debug)]
struct Queues {
    plain: Arc<Queue>,
    timed: Arc<Queue>,
    use_timed: Cell<bool>,
    /// Whether times are needed for good.
    always_timed: Cell<bool>,
}

/// How a device is to be used. The default is the best way it has.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// The way kernels are written.
    pub path: Option<Path>,
    /// How memory is shared, where the device can do that.
    pub sharing: Option<Sharing>,
    /// Where compiled kernels are kept.
    pub cache: Option<ProgramCache>,
    /// What a device with memory of its own may hold of a model.
    pub experts: ExpertCacheSettings,
}

/// A kernel's name, and its launch.
type Launched = (&'static str, Arc<Event>);

/// A kernel: its source, its name there, and the numbers that it is compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct KernelKey {
    file: &'static str,
    name: &'static str,
    defines: Vec<(&'static str, usize)>,
}

impl Gpu {
    /// Takes a device into use.
    ///
    /// # Errors
    /// When its driver fails, or the device lacks what the path needs.
    pub fn open(device: Device, options: GpuOptions) -> Result<Self> {
        let info = device.info();
        let best = info.paths()[0];
        let path = options.path.unwrap_or(best);
        if !path.runs_on(info) {
            let what = format!("what the {} kernels need", path.name());
            return Err(GpuError::Missing { device: info.full_name(), what });
        }
        let context = Arc::new(Context::new(device.id)?);
        let queue = |timed| Queue::new(&context, device.id, timed).map(Arc::new);
        let queues = Queues {
            plain: queue(false)?,
            timed: queue(true)?,
            use_timed: Cell::default(),
            always_timed: Cell::default(),
        };
        let memory = SharedMemory::new(&device, Arc::clone(&context), options.sharing);
        Ok(Self {
            kernels: RefCell::default(),
            programs: RefCell::default(),
            times: RefCell::default(),
            newest: RefCell::default(),
            launches: Cell::default(),
            waits: Cell::default(),
            faults: Faults::default(),
            queues,
            memory,
            cache: options.cache,
            experts: options.experts,
            device,
            path,
            context,
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The way its kernels are written.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Memory that it shares with the CPU.
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// What it may hold of a model, where it has memory of its own.
    pub fn expert_settings(&self) -> ExpertCacheSettings {
        self.experts
    }

    /// What its memory and queues belong to.
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The queue of its kernels.
    pub(crate) fn queue(&self) -> &Arc<Queue> {
        if self.queues.use_timed.get() { &self.queues.timed } else { &self.queues.plain }
    }

    /// Has commands be timed from now on, for good.
    ///
    /// # Errors
    /// When the driver fails.
    pub(crate) fn always_keep_times(&self) -> Result<()> {
        self.queues.always_timed.set(true);
        self.use_timed_queue(true)
    }

    /// Goes on with the other queue, once everything in this one is done.
    fn use_timed_queue(&self, wanted: bool) -> Result<()> {
        let wanted = wanted || self.queues.always_timed.get();
        if wanted != self.queues.use_timed.get() {
            self.queue().finish()?;
            self.queues.use_timed.set(wanted);
        }
        Ok(())
    }

    /// Kernels that were launched so far.
    pub fn launches(&self) -> usize {
        self.launches.get()
    }

    /// How often the CPU has waited for the device so far.
    pub fn waits(&self) -> usize {
        self.waits.get()
    }

    /// Lets `count` occasions for a fault pass, and has the next one fail: for tests.
    #[doc(hidden)]
    pub fn fail_after(&self, count: usize, fault: Fault) {
        if fault == Fault::Allocation {
            self.memory.refuse_after(count);
        } else {
            self.faults.arm(fault, count);
        }
    }

    /// Keeps the times of kernels from now on, or no longer.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn record_times(&self, wanted: bool) -> Result<()> {
        self.times.replace(wanted.then(Vec::new));
        self.use_timed_queue(wanted)
    }

    /// Seconds that each kernel took on the device, in order, since this was last asked for or recording began.
    /// Whatever was launched must be done: call it between scopes.
    ///
    /// # Errors
    /// When the driver has no times.
    pub fn take_times(&self) -> Result<Vec<(&'static str, f64)>> {
        let seconds = |(start, end): (u64, u64)| end.saturating_sub(start) as f64 * 1e-9;
        let intervals = self.take_intervals()?.into_iter();
        Ok(intervals.map(|(name, interval)| (name, seconds(interval))).collect())
    }

    /// As [`Self::take_times`]: when each kernel began and when it ended, in nanoseconds of the device's clock.
    ///
    /// # Errors
    /// As [`Self::take_times`].
    pub fn take_intervals(&self) -> Result<Vec<(&'static str, (u64, u64))>> {
        let events = self.times.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default();
        events.into_iter().map(|(name, event)| Ok((name, event.interval()?))).collect()
    }

    /// As [`Self::take_intervals`], for less: when the first kernel began, and when some of them ended, which are counted from
    /// 0 on. None where nothing was launched.
    ///
    /// # Errors
    /// As [`Self::take_times`].
    pub fn take_ends(&self, kernels: &[usize]) -> Result<Option<(u64, Vec<u64>)>> {
        let events = self.times.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default();
        let Some((_, first)) = events.first() else { return Ok(None) };
        let ends = kernels.iter().filter_map(|&kernel| events.get(kernel));
        let ends = ends.map(|(_, event)| event.end()).collect::<Result<_>>()?;
        Ok(Some((first.start()?, ends)))
    }

    /// Whether the device uses these bytes where they are, by its driver's own account: memory that was allocated
    /// for it by pointer, or a buffer that maps to its own address.
    ///
    /// # Errors
    /// When they were not allocated for this device.
    pub fn is_in_place(&self, bytes: &[u8]) -> Result<bool> {
        match self.memory.place(bytes)? {
            Place::Pointer(_) => Ok(true),
            Place::Buffer(buffer, offset) => {
                let mapped = self.queue().mapped_address(&buffer, offset + bytes.len())?;
                Ok(mapped + offset == bytes.as_ptr() as usize)
            }
        }
    }

    /// Lends memory to the device while `work` enqueues kernels, and waits for them at the end.
    ///
    /// # Errors
    /// Those of `work`, and those of waiting.
    pub fn scope<'env, T>(
        &'env self,
        work: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> Result<T>,
    ) -> Result<T> {
        /// Waits also where `work` panics: what it lent must not be used any more when its borrow ends.
        struct Wait<'a>(&'a Queue);
        impl Drop for Wait<'_> {
            fn drop(&mut self) {
                let _lost = self.0.finish();
            }
        }
        let scope = Scope { gpu: self, scope: PhantomData };
        let wait = Wait(self.queue());
        let result = work(&scope);
        std::mem::forget(wait);
        let waited = self.wait();
        let result = result?;
        waited.map(|()| result)
    }

    /// Waits for everything that was enqueued. Memory may be used again once this returns, whatever it answers: a device
    /// that takes too long is waited for all the same, and reported afterwards.
    fn wait(&self) -> Result<()> {
        let Some(newest) = self.newest.take() else { return Ok(()) };
        self.waits.set(self.waits.get() + 1);
        let started = Instant::now();
        let flushed = self.queue().flush();
        let mut done = Ok(false);
        while matches!(done, Ok(false)) && started.elapsed() < POLLING {
            std::thread::yield_now();
            done = newest.is_done();
        }
        // Commands end in order, and a failed one may not be the newest: only the queue knows of all.
        self.queue().finish()?;
        flushed.and(done)?;
        self.faults.occasion(Fault::TimeOut, "clFinish")?;
        self.faults.occasion(Fault::DeviceLost, "clFinish")?;
        let taken = started.elapsed();
        if taken > PATIENCE { Err(GpuError::TimedOut(taken)) } else { Ok(()) }
    }

    /// Makes sure that a kernel is compiled, and runs `use_it` with it.
    fn with_kernel<T>(
        &self,
        work: Work<'_>,
        use_it: impl FnOnce(&Kernel) -> Result<T>,
    ) -> Result<T> {
        let (file, name) = (work.source.file, work.name);
        let key = KernelKey { file, name, defines: work.defines.to_vec() };
        if let Some(kernel) = self.kernels.borrow().get(&key) {
            return use_it(kernel);
        }
        let mut options = self.path.options(self.device.info());
        for (name, value) in work.defines {
            // Writing to a string cannot fail.
            let _infallible = write!(options, " -D{name}={value}");
        }
        let mut programs = self.programs.borrow_mut();
        let program = match programs.entry((file, options)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                // A fault that is wanted is a real one: without its word for kernels no source compiles.
                let broken = self.faults.is_due(Fault::Build)?;
                let options =
                    format!("{}{}", entry.key().1, if broken { " -Dkernel=broken" } else { "" });
                let cache = self.cache.as_ref();
                let built = build(&self.context, &self.device, cache, work.source, &options)?;
                entry.insert(built)
            }
        };
        let kernel = Kernel::new(program, name)?;
        let result = use_it(&kernel);
        self.kernels.borrow_mut().insert(key, kernel);
        result
    }
}
