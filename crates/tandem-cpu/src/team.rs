//! The persistent thread team.
//!
//! One token runs through hundreds of small operations, each a few microseconds of work for every core, so
//! handing work out must cost next to nothing. The team's threads live as long as the team. Between two
//! operations of a token they spin; after [`SPIN`] without work they sleep, so that an idle team uses no CPU.
//!
//! The caller is itself member 0: a team of one starts no thread and calls the function directly.
//!
//! A `run` from within a `run` (of this team or another) is executed by the calling member alone, all members'
//! shares one after the other. So it gives the same results, and it can never deadlock.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::shares::Shares;

/// How long a member looks out for work, or for the others' end, before it sleeps. The gaps between the
/// operations of one token are a few microseconds; waking a sleeper costs tens.
const SPIN: Duration = Duration::from_micros(50);

/// What every member runs, with its own number. The lifetime is erased: see [`Shared::start`].
type Job = &'static (dyn Fn(usize) + Sync);

thread_local! {
    /// Whether this thread is running a share of some team's job.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A fixed number of threads that run the same function together.
#[derive(Debug)]
pub struct ThreadTeam {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held through a `run`, so that callers from several threads take turns.
    turn: Mutex<()>,
}

impl ThreadTeam {
    /// A team of `threads` members: the caller of [`run`](Self::run) and `threads - 1` new threads.
    ///
    /// # Errors
    /// When `threads` is 0 or the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        if threads == 0 {
            let message = "threads: expected at least 1, found 0";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
        }
        // Spinning helps only members that have a core to themselves.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = if threads <= cores { SPIN } else { Duration::ZERO };
        let shared = Arc::new(Shared::new(spin));
        let mut team = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for member in 1..threads {
            let shared = Arc::clone(&team.shared);
            let builder = std::thread::Builder::new().name(format!("tandem-{member}"));
            // On failure `team` is dropped, which ends the threads already started.
            team.workers.push(builder.spawn(move || shared.work(member))?);
        }
        Ok(team)
    }

    /// Members, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` once for every member, with the member's number, all at the same time. Returns when all are
    /// done; what they wrote is then visible to the caller.
    ///
    /// Within a `run` of any team the shares are executed one after the other by the calling thread.
    ///
    /// # Panics
    /// With the panic of a member (of one of them where several panic), once all members are done.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || INSIDE.get() {
            return (0..self.threads()).for_each(f);
        }
        let turn = lock(&self.turn);
        self.shared.start(f, self.workers.len());
        let own = catch_unwind(AssertUnwindSafe(|| as_member(|| f(0))));
        self.shared.finish();
        let others = lock(&self.shared.panic).take();
        // `f` is no longer in use by anyone: from here on this function may unwind.
        if let Some(panic) = own.err().or(others) {
            drop(turn);
            resume_unwind(panic);
        }
    }

    /// Calls `f` with ranges that together cover `0..items` exactly once, each of `chunk` items (the last may
    /// be shorter). Members take the next range as they become free, so faster cores do more.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn for_each_chunk(&self, items: usize, chunk: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let chunk = chunk.max(1);
        let chunks = items.div_ceil(chunk);
        let range = |index: usize| index * chunk..((index + 1).saturating_mul(chunk)).min(items);
        if chunks <= 1 || self.workers.is_empty() {
            return (0..chunks).for_each(|index| f(range(index)));
        }
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= chunks {
                    break;
                }
                f(range(index));
            }
        });
    }
}

impl ThreadTeam {
    /// Calls `f` with ranges that together cover `0..items` exactly once. A member's ranges are neighbours as far as
    /// they can be, and get smaller towards the end: see [`Shares`].
    ///
    /// # Panics
    /// As [`run`](Self::run), and when there are 2^32 items or more.
    pub fn for_each_range(&self, items: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        if items <= 1 || self.workers.is_empty() || INSIDE.get() {
            if items > 0 {
                f(0..items);
            }
            return;
        }
        let shares = Shares::new(self.threads());
        shares.fill(items, self.threads());
        self.run(&|member| {
            while let Some(range) = shares.take(member) {
                f(range);
            }
        });
    }
}

impl Drop for ThreadTeam {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.round.fetch_add(1, Ordering::SeqCst);
        self.shared.start.notify();
        for worker in self.workers.drain(..) {
            // A worker catches its job's panics, so it cannot have ended by one.
            let _ = worker.join();
        }
    }
}

/// What the team and its workers share.
struct Shared {
    /// Counts the jobs; a change tells workers that there is one, or that `stop` is set.
    round: AtomicUsize,
    /// The job of this round. Written by the caller between rounds, read by workers within one.
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished this round.
    busy: AtomicUsize,
    stop: AtomicBool,
    /// The first worker's panic of this round.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    start: Gate,
    end: Gate,
    spin: Duration,
}

// SAFETY: `job` is the only part that is not `Sync` by itself. It is written only in `start`, by the holder of
// the team's `turn`, while no worker is in a round (`busy` is 0, seen with Acquire); workers read it only within
// a round, after they saw `round` change (Acquire), which happens after the write (Release).
unsafe impl Sync for Shared {}
// SAFETY: the job is `Sync`, so a reference to it may be used from any thread.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("round", &self.round).field("busy", &self.busy).finish()
    }
}

impl Shared {
    fn new(spin: Duration) -> Self {
        Self {
            round: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            busy: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            start: Gate::default(),
            end: Gate::default(),
            spin,
        }
    }

    /// Starts a round. The caller must not return or unwind before `finish`, as workers use `f` until then.
    fn start(&self, f: &(dyn Fn(usize) + Sync), workers: usize) {
        // SAFETY: only the lifetime changes. `ThreadTeam::run`, the only caller, calls `finish` before it
        // returns or unwinds, and after `finish` no worker reads the job before the next `start` replaces it.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(f) };
        // SAFETY: see `Sync`: the last round is over and this one has not begun, so nobody reads.
        unsafe { *self.job.get() = Some(job) };
        self.busy.store(workers, Ordering::Relaxed);
        self.round.fetch_add(1, Ordering::SeqCst);
        self.start.notify();
    }

    /// Waits until every worker is done with this round.
    fn finish(&self) {
        self.end.wait(self.spin, || self.busy.load(Ordering::SeqCst) == 0);
    }

    /// The life of a worker.
    fn work(&self, member: usize) {
        let mut seen = 0;
        loop {
            self.start.wait(self.spin, || self.round.load(Ordering::SeqCst) != seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // A round ends only when every worker has run it, so none was missed.
            seen = seen.wrapping_add(1);
            // SAFETY: see `Sync`: this is within a round, so nobody writes.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| as_member(|| job(member))))
            {
                lock(&self.panic).get_or_insert(panic);
            }
            if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.end.notify();
            }
        }
    }
}

/// Where threads wait for a condition on an atomic: spinning first, then asleep.
///
/// A waiter announces itself before it checks the condition a last time, and a notifier changes the atomic
/// before it looks for waiters. Both orders are sequentially consistent, so at least one sees the other.
#[derive(Default)]
struct Gate {
    sleepers: AtomicUsize,
    mutex: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    fn wait(&self, spin: Duration, ready: impl Fn() -> bool) {
        if spins_until(spin, &ready) {
            return;
        }
        let mut guard = lock(&self.mutex);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// To be called after the atomic changed.
    fn notify(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // A sleeper that has checked but does not wait yet holds the lock: let it get there.
            drop(lock(&self.mutex));
            self.wake.notify_all();
        }
    }
}

/// Looks at `ready` for as long as `spin`, and says whether it came true.
fn spins_until(spin: Duration, ready: impl Fn() -> bool) -> bool {
    if ready() {
        return true;
    }
    let begin = Instant::now();
    while begin.elapsed() < spin {
        for _ in 0..32 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        // Where threads share a core after all, the one waited for may need this one.
        std::thread::yield_now();
    }
    ready()
}

/// Runs a share of a job, with the thread marked as being inside one.
fn as_member(share: impl FnOnce()) {
    struct Unmark;
    impl Drop for Unmark {
        fn drop(&mut self) {
            INSIDE.set(false);
        }
    }
    INSIDE.set(true);
    let _unmark = Unmark;
    share();
}

/// Locks, also after a panic: nothing in this module is left half-done by one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
