//! A device at work: its queue, its kernels, and the scopes in which memory is lent to it.
//!
//! Kernels are enqueued and run while the CPU goes on. What they read and write is ordinary memory of the program, so
//! the borrow checker is asked to keep everyone else away from it: memory is lent to a [`Scope`], as with
//! `std::thread::scope`, and the scope's end waits for the device. Within a scope nothing is waited for, since the
//! queue keeps its kernels in order.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_memory::{AlignedBuffer, Allocator, Element};

use crate::cl::{Buffer, Context, Event, Kernel, Program, Queue};
use crate::device::Device;
use crate::error::{GpuError, Result};
use crate::fault::{Fault, Faults};
use crate::memory::{Place, SharedMemory, Sharing};
use crate::path::Path;
use crate::program::{ProgramCache, Source, build};

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
    queue: Arc<Queue>,
    memory: SharedMemory,
    cache: Option<ProgramCache>,
    device: Device,
    path: Path,
    context: Arc<Context>,
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

/// What to launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    pub(crate) source: Source,
    pub(crate) name: &'static str,
    pub(crate) defines: &'a [(&'static str, usize)],
    /// Work-items in all.
    pub(crate) global: [usize; 3],
    /// Work-items of a work-group.
    pub(crate) local: [usize; 3],
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
        let queue = Arc::new(Queue::new(&context, device.id)?);
        let memory = SharedMemory::new(&device, Arc::clone(&context), options.sharing);
        Ok(Self {
            kernels: RefCell::default(),
            programs: RefCell::default(),
            times: RefCell::default(),
            newest: RefCell::default(),
            launches: Cell::default(),
            waits: Cell::default(),
            faults: Faults::default(),
            queue,
            memory,
            cache: options.cache,
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

    /// What its memory and queues belong to.
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The queue of its kernels.
    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
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
    pub fn record_times(&self, wanted: bool) {
        self.times.replace(wanted.then(Vec::new));
    }

    /// Seconds that each kernel took on the device, in order, since this was last asked for or recording began.
    /// Whatever was launched must be done: call it between scopes.
    ///
    /// # Errors
    /// When the driver has no times.
    pub fn take_times(&self) -> Result<Vec<(&'static str, f64)>> {
        let events = self.times.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default();
        events.into_iter().map(|(name, event)| Ok((name, event.seconds()?))).collect()
    }

    /// Room for `len` numbers, all zero, which the device can use: shared with the CPU where that is possible.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn zeros<T: Element>(&self, len: usize) -> Result<GpuVec<T>> {
        let bytes = len * size_of::<T>();
        let missing = |what| GpuError::Missing { device: self.device.info().full_name(), what };
        let storage = if self.memory.sharing() == Sharing::None {
            self.memory
                .refusal()
                .map_or(Ok(()), |reason| Err(missing(format!("memory: {reason}"))))?;
            let buffer = Arc::new(Buffer::new(&self.context, bytes.max(1))?);
            self.queue.write(&buffer, 0, &vec![0; bytes])?;
            Storage::Device(buffer)
        } else {
            let memory = self.memory.zeroed(bytes);
            Storage::Shared(memory.map_err(|e| missing(format!("memory: {e}")))?)
        };
        Ok(GpuVec { storage, len, numbers: PhantomData })
    }

    /// Numbers of ours, where the device can use them.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn upload<T: Element>(&self, numbers: &[T]) -> Result<GpuVec<T>> {
        let mut to = self.zeros(numbers.len())?;
        self.write(&mut to, numbers)?;
        Ok(to)
    }

    /// Replaces the numbers of a vector.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there are more or fewer numbers than the vector has.
    pub fn write<T: Element>(&self, to: &mut GpuVec<T>, numbers: &[T]) -> Result<()> {
        assert_eq!(numbers.len(), to.len, "numbers to write");
        match &mut to.storage {
            Storage::Shared(own) => own.typed_mut().copy_from_slice(numbers),
            Storage::Device(buffer) => {
                self.queue.write(buffer, 0, bytes_of(numbers))?;
            }
        }
        Ok(())
    }

    /// Replaces some of a vector's numbers, from `at` on.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the vector has fewer.
    pub fn write_at<T: Element>(&self, to: &mut GpuVec<T>, at: usize, numbers: &[T]) -> Result<()> {
        let end = at + numbers.len();
        assert!(end <= to.len, "numbers {at} to {end} of {}", to.len);
        match &mut to.storage {
            Storage::Shared(own) => own.typed_mut()[at..end].copy_from_slice(numbers),
            Storage::Device(buffer) => {
                self.queue.write(buffer, at * size_of::<T>(), bytes_of(numbers))?;
            }
        }
        Ok(())
    }

    /// Some of a vector's numbers, from `at` on: as many as `numbers` has room for.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the vector has fewer.
    pub fn read_at<T: Element>(
        &self,
        from: &GpuVec<T>,
        at: usize,
        numbers: &mut [T],
    ) -> Result<()> {
        let end = at + numbers.len();
        assert!(end <= from.len, "numbers {at} to {end} of {}", from.len);
        match &from.storage {
            Storage::Shared(own) => numbers.copy_from_slice(&own.typed()[at..end]),
            Storage::Device(buffer) => {
                self.queue.read(buffer, at * size_of::<T>(), bytes_of_mut(numbers))?;
            }
        }
        Ok(())
    }

    /// A vector's numbers.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn read<T: Element>(&self, from: &GpuVec<T>) -> Result<Vec<T>> {
        match &from.storage {
            Storage::Shared(own) => Ok(own.typed().to_vec()),
            Storage::Device(buffer) => {
                // Read into pages, which are aligned for numbers of every type.
                let mut bytes = AlignedBuffer::zeroed(from.len * size_of::<T>())
                    .map_err(|e| GpuError::NoDevice(e.to_string()))?;
                self.queue.read(buffer, 0, bytes.as_mut_slice())?;
                Ok(bytes.typed().to_vec())
            }
        }
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
                let mapped = self.queue.mapped_address(&buffer, offset + bytes.len())?;
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
        let wait = Wait(&self.queue);
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
        let flushed = self.queue.flush();
        let mut done = Ok(false);
        while matches!(done, Ok(false)) && started.elapsed() < POLLING {
            std::thread::yield_now();
            done = newest.is_done();
        }
        // Commands end in order, and a failed one may not be the newest: only the queue knows of all.
        self.queue.finish()?;
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
                self.faults.occasion(Fault::Build, "clBuildProgram")?;
                let cache = self.cache.as_ref();
                let options = entry.key().1.as_str();
                let built = build(&self.context, &self.device, cache, work.source, options)?;
                entry.insert(built)
            }
        };
        let kernel = Kernel::new(program, name)?;
        let result = use_it(&kernel);
        self.kernels.borrow_mut().insert(key, kernel);
        result
    }
}

/// A time in which memory is lent to the device.
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    gpu: &'env Gpu,
    /// Invariant, as in `std::thread::Scope`: a scope must not pass for a shorter one.
    scope: PhantomData<&'scope mut &'scope ()>,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// The device.
    pub fn gpu(&self) -> &'env Gpu {
        self.gpu
    }

    /// Lends numbers for reading. They must be in [shared memory](Gpu::memory).
    ///
    /// # Errors
    /// When they are not.
    pub fn lend<T: Element>(&self, numbers: &'scope [T]) -> Result<Region<'scope, T>> {
        let place = self.gpu.memory.place(bytes_of(numbers))?;
        Ok(Region { place, len: numbers.len(), lent: PhantomData })
    }

    /// Lends numbers for reading and writing. They must be in [shared memory](Gpu::memory).
    ///
    /// # Errors
    /// When they are not.
    pub fn lend_mut<T: Element>(&self, numbers: &'scope mut [T]) -> Result<RegionMut<'scope, T>> {
        let place = self.gpu.memory.place(bytes_of(numbers))?;
        Ok(RegionMut(Region { place, len: numbers.len(), lent: PhantomData }))
    }

    /// Lends a vector for reading.
    ///
    /// # Errors
    /// When it belongs to another device.
    pub fn vec<T: Element>(&self, vec: &'scope GpuVec<T>) -> Result<Region<'scope, T>> {
        let place = match &vec.storage {
            Storage::Shared(own) => self.gpu.memory.place(own)?,
            Storage::Device(buffer) => Place::Buffer(Arc::clone(buffer), 0),
        };
        Ok(Region { place, len: vec.len, lent: PhantomData })
    }

    /// Lends a vector for reading and writing.
    ///
    /// # Errors
    /// When it belongs to another device.
    pub fn vec_mut<T: Element>(&self, vec: &'scope mut GpuVec<T>) -> Result<RegionMut<'scope, T>> {
        self.vec(vec).map(RegionMut)
    }

    /// Hands what was enqueued to the device, so that it begins while the CPU goes on.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn submit(&self) -> Result<()> {
        self.gpu.queue.flush()
    }

    /// Enqueues a kernel. Arguments follow the order of its parameters; memory takes two of them, base and offset
    /// (`IN` and `OUT` of `kernels/common.cl`).
    ///
    /// # Safety
    /// The arguments are what the kernel's source asks for, and with them it keeps within the memory it is given, and
    /// writes only where an argument is a [`RegionMut`].
    pub(crate) unsafe fn launch(&self, work: Work<'_>, args: &[Arg<'_>]) -> Result<()> {
        if work.global.contains(&0) {
            return Ok(());
        }
        let gpu = self.gpu;
        gpu.with_kernel(work, |kernel| {
            let mut index = 0;
            for arg in args {
                // SAFETY: the caller's promise about the parameters' types.
                index += unsafe { arg.set(gpu, kernel, index) }?;
            }
            gpu.faults.occasion(Fault::Enqueue, "clEnqueueNDRangeKernel")?;
            // SAFETY: regions are borrowed for the scope, whose end waits for the queue; the rest is the caller's
            // promise.
            let event = unsafe { gpu.queue.launch(kernel, work.global, work.local) }?;
            gpu.launches.set(gpu.launches.get() + 1);
            let event = Arc::new(event);
            gpu.newest.replace(Some(Arc::clone(&event)));
            if let Some(times) = gpu.times.borrow_mut().as_mut() {
                times.push((work.name, event));
            }
            Ok(())
        })
    }
}

/// Numbers that are lent to a device for reading.
#[derive(Clone, Debug)]
pub struct Region<'scope, T> {
    place: Place,
    len: usize,
    lent: PhantomData<&'scope T>,
}

impl<'scope> Region<'scope, u8> {
    /// The same bytes as numbers.
    ///
    /// # Panics
    /// When they are no whole number of those, or do not begin where such numbers may.
    #[must_use]
    pub fn cast<T: Element>(&self) -> Region<'scope, T> {
        let (Place::Pointer(start) | Place::Buffer(_, start)) = &self.place;
        let fits = start.is_multiple_of(size_of::<T>()) && self.len.is_multiple_of(size_of::<T>());
        assert!(fits, "{} bytes at {start} are no numbers of {}", self.len, size_of::<T>());
        Region { place: self.place.clone(), len: self.len / size_of::<T>(), lent: PhantomData }
    }
}

impl<T: Element> Region<'_, T> {
    /// The first `len` numbers of a buffer of the device's own. Whoever makes it answers for the buffer's owner being
    /// borrowed for the scope, and for the numbers being there.
    pub(crate) fn of_buffer(buffer: &Arc<Buffer>, len: usize) -> Self {
        Self { place: Place::Buffer(Arc::clone(buffer), 0), len, lent: PhantomData }
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of them.
    ///
    /// # Panics
    /// When the range is out of bounds.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let skipped = range.start * size_of::<T>();
        let place = match &self.place {
            Place::Pointer(start) => Place::Pointer(start + skipped),
            Place::Buffer(buffer, offset) => Place::Buffer(Arc::clone(buffer), offset + skipped),
        };
        Self { place, len: range.len(), lent: PhantomData }
    }
}

/// Numbers that are lent to a device for reading and writing.
#[derive(Clone, Debug)]
pub struct RegionMut<'scope, T>(Region<'scope, T>);

impl<T: Element> RegionMut<'_, T> {
    /// Some of them.
    ///
    /// # Panics
    /// When the range is out of bounds.
    #[must_use]
    pub fn slice_mut(&self, range: Range<usize>) -> Self {
        Self(self.0.slice(range))
    }
}

impl<'scope, T> Deref for RegionMut<'scope, T> {
    type Target = Region<'scope, T>;

    fn deref(&self) -> &Region<'scope, T> {
        &self.0
    }
}

/// Numbers that a device can use.
#[derive(Debug)]
pub struct GpuVec<T> {
    storage: Storage,
    len: usize,
    numbers: PhantomData<T>,
}

#[derive(Debug)]
enum Storage {
    Shared(AlignedBuffer),
    Device(Arc<Buffer>),
}

impl<T: Element> GpuVec<T> {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg<'a> {
    Memory(&'a Place),
    U32(u32),
    F32(f32),
}

impl Arg<'_> {
    /// Sets the argument; answers how many parameters it takes.
    ///
    /// # Safety
    /// The kernel's parameters from `index` on are of its type.
    unsafe fn set(&self, gpu: &Gpu, kernel: &Kernel, index: u32) -> Result<u32> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::U32(value) => kernel.set(index, value)?,
                Self::F32(value) => kernel.set(index, value)?,
                Self::Memory(place) => {
                    let offset = match (place, gpu.memory.usm()) {
                        (Place::Buffer(buffer, offset), _) => {
                            kernel.set(index, &buffer.raw())?;
                            *offset as u64
                        }
                        (Place::Pointer(start), Some(usm)) => {
                            usm.set_arg(kernel, index, *start as *const u8)?;
                            0
                        }
                        (Place::Pointer(start), None) => {
                            let device = gpu.device.info().full_name();
                            return Err(GpuError::NotShared { start: *start, bytes: 0, device });
                        }
                    };
                    kernel.set(index + 1, &offset)?;
                    return Ok(2);
                }
            }
        }
        Ok(1)
    }
}

impl<'a, T> From<&'a Region<'_, T>> for Arg<'a> {
    fn from(region: &'a Region<'_, T>) -> Self {
        Self::Memory(&region.place)
    }
}

impl<'a, T> From<&'a RegionMut<'_, T>> for Arg<'a> {
    fn from(region: &'a RegionMut<'_, T>) -> Self {
        Self::Memory(&region.0.place)
    }
}

/// Counts and sizes: kernels take 32 bits.
impl From<usize> for Arg<'_> {
    fn from(value: usize) -> Self {
        let Ok(value) = u32::try_from(value) else { panic!("{value} is too large for a kernel") };
        Self::U32(value)
    }
}

impl From<f32> for Arg<'_> {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

/// Numbers as bytes.
fn bytes_of<T: Element>(numbers: &[T]) -> &[u8] {
    // SAFETY: an `Element` has no padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// Numbers as bytes, for writing.
fn bytes_of_mut<T: Element>(numbers: &mut [T]) -> &mut [u8] {
    // SAFETY: an `Element` has no padding, and any bytes are one.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}
