//! Rounds of work: handing a job to members, and waiting until all are done.
//!
//! A round costs two transfers of a cache line between cores, the least there is: the caller writes one line with
//! the job and the round's number, on which workers wait, and workers count themselves off in another, on which the
//! caller waits. Nothing else is written in a round.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::ahead::{Ahead, Pieces};
use super::lock;
use super::turns::{self, Place};

/// How long a member looks out for work, or for the others' end, before it sleeps. The gaps between the
/// operations of one token are a few microseconds; waking a sleeper costs tens.
const SPIN: Duration = Duration::from_micros(50);
/// Looks between two looks at the clock: about a microsecond.
const LOOKS: u32 = 32;

/// Bits of a call that say how many members take part; the others number the rounds.
const MEMBER_BITS: u32 = 16;
/// In place of the number of members: the end.
const STOP: u64 = (1 << MEMBER_BITS) - 1;
/// Members that a team may have.
pub(super) const MAX_MEMBERS: usize = STOP as usize - 1;

/// What every member runs, with its own number. The lifetime is erased: see [`Rounds::start`].
type Job = &'static (dyn Fn(usize) + Sync);
type Panic = Box<dyn Any + Send>;

/// Apart from what other cores write: a cache line, and the neighbour that Intel's prefetchers fetch with it.
#[repr(align(128))]
struct Apart<T>(T);

/// What a team's caller and its workers share.
pub(super) struct Rounds {
    call: Apart<Call>,
    finish: Apart<Finish>,
    /// Whether a worker sleeps, or is about to: worker `i` is member `i + 1`.
    asleep: Box<[AtomicBool]>,
    /// What each member will read next.
    ahead: Box<[Apart<Ahead>]>,
    /// CPUs of this process when the team was made: more members than that do not spin.
    cpus: usize,
}

/// Written by the caller.
struct Call {
    /// The round's number and how many members take part, in one: a worker that takes no part in some rounds, and so
    /// is not waited for, can never take the one for another round's.
    round: AtomicU64,
    /// The job of this round. Written by the caller between rounds, read within one by workers that take part.
    job: UnsafeCell<Option<Job>>,
    /// What [`Finish::done`] will be at the end of this round.
    due: AtomicUsize,
}

/// Written by workers, and by a caller that goes to sleep.
struct Finish {
    /// How many times a worker has finished a round. Wraps.
    done: AtomicUsize,
    /// Whether the caller sleeps, or is about to.
    asleep: AtomicBool,
    caller: Mutex<Option<Thread>>,
    panicked: AtomicBool,
    /// The first worker's panic of this round.
    panic: Mutex<Option<Panic>>,
}

// SAFETY: `job` is the only part that is not `Sync` by itself. It is written only in `start`, by the holder of the
// team's turn, while no worker is in a round (`done` is `due`, seen with Acquire); a worker reads it only within a
// round that it takes part in, after it saw `round` change (Acquire), which happens after the write (Release), and
// before it counts itself done (Release), without which that round does not end.
unsafe impl Sync for Rounds {}
// SAFETY: the job is `Sync`, so a reference to it may be used from any thread.
unsafe impl Send for Rounds {}

impl std::fmt::Debug for Rounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rounds").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Rounds {
    pub(super) fn new(members: usize) -> Self {
        Self {
            call: Apart(Call {
                round: AtomicU64::new(0),
                job: UnsafeCell::new(None),
                due: AtomicUsize::new(0),
            }),
            finish: Apart(Finish {
                done: AtomicUsize::new(0),
                asleep: AtomicBool::new(false),
                caller: Mutex::new(None),
                panicked: AtomicBool::new(false),
                panic: Mutex::new(None),
            }),
            asleep: (1..members).map(|_| AtomicBool::new(false)).collect(),
            ahead: (0..members).map(|_| Apart(Ahead::default())).collect(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// What tells this from all others that exist.
    pub(super) fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Rounds so far.
    pub(super) fn count(&self) -> u64 {
        self.call.0.round.load(Ordering::Relaxed) >> MEMBER_BITS
    }

    /// Tells a member what it will read next.
    pub(super) fn announce(&self, member: usize, pieces: &Pieces) {
        self.ahead[member].0.announce(pieces);
    }

    /// Starts a round of `f` with the first `members` members. The caller holds the team's turn, and must not return
    /// or unwind before [`Self::finish`], as workers use `f` until then.
    pub(super) fn start(
        &self,
        f: &(dyn Fn(usize) + Sync),
        members: usize,
        workers: &[JoinHandle<()>],
    ) {
        let call = &self.call.0;
        // SAFETY: only the lifetime changes. `ThreadTeam::round`, the only caller, calls `finish` before it
        // returns or unwinds, and after `finish` no worker reads the job before the next `start` replaces it.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(f) };
        // SAFETY: see `Sync`: the last round is over and this one has not begun, so nobody reads.
        unsafe { *call.job.get() = Some(job) };
        let due = call.due.load(Ordering::Relaxed).wrapping_add(members - 1);
        call.due.store(due, Ordering::Relaxed);
        self.call_members(members as u64, &workers[..members - 1]);
    }

    /// Ends the workers.
    pub(super) fn stop(&self, workers: &[JoinHandle<()>]) {
        self.call_members(STOP, workers);
    }

    /// Tells `workers` that there is something new. A worker says that it sleeps before it looks a last time, and
    /// here it is told before its sleep is looked at. Both orders are sequentially consistent, so at least one sees
    /// the other.
    fn call_members(&self, members: u64, workers: &[JoinHandle<()>]) {
        let round = &self.call.0.round;
        let number = (round.load(Ordering::Relaxed) >> MEMBER_BITS).wrapping_add(1);
        round.store(number << MEMBER_BITS | members, Ordering::SeqCst);
        for (worker, asleep) in workers.iter().zip(&self.asleep) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// Waits until every worker is done with this round of so many members.
    pub(super) fn finish(&self, members: usize) {
        let (due, finish) = (self.call.0.due.load(Ordering::Relaxed), &self.finish.0);
        let over = |order| (finish.done.load(order) == due).then_some(());
        if self.look_out(0, members, || over(Ordering::Acquire)).is_some() {
            return;
        }
        *lock(&finish.caller) = Some(std::thread::current());
        // As in `call_members`, with `done` for the news.
        finish.asleep.store(true, Ordering::SeqCst);
        while over(Ordering::SeqCst).is_none() {
            std::thread::park();
        }
        finish.asleep.store(false, Ordering::Relaxed);
    }

    /// The panic of a worker in the round that is over, if there was one.
    pub(super) fn take_panic(&self) -> Option<Panic> {
        let Finish { panicked, panic, .. } = &self.finish.0;
        if !panicked.load(Ordering::Relaxed) {
            return None;
        }
        panicked.store(false, Ordering::Relaxed);
        lock(panic).take()
    }

    /// The life of a worker.
    pub(super) fn work(&self, member: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_round(member, seen);
            let members = seen & STOP;
            if members == STOP {
                return;
            }
            let share = Place::share(self.id(), members as usize);
            // SAFETY: see `Sync`: this is within a round that this worker takes part in, so nobody writes.
            let job = unsafe { *self.call.0.job.get() };
            if let Some(job) = job
                && let Err(panic) =
                    catch_unwind(AssertUnwindSafe(|| turns::at(share, || job(member))))
            {
                lock(&self.finish.0.panic).get_or_insert(panic);
                self.finish.0.panicked.store(true, Ordering::Relaxed);
            }
            self.count_off();
        }
    }

    /// Says that a worker is done with its round.
    fn count_off(&self) {
        // Looked at while the round cannot end without this worker.
        let due = self.call.0.due.load(Ordering::Relaxed);
        let Finish { done, asleep, caller, .. } = &self.finish.0;
        let is_last = done.fetch_add(1, Ordering::SeqCst).wrapping_add(1) == due;
        // If the caller is off to other rounds by now this may wake it for nothing, which does no harm.
        if is_last
            && asleep.load(Ordering::SeqCst)
            && let Some(caller) = &*lock(caller)
        {
            caller.unpark();
        }
    }

    /// Waits for the next round after `seen` that `member` takes part in.
    fn next_round(&self, member: usize, seen: u64) -> u64 {
        let next = |order| {
            let round = self.call.0.round.load(order);
            (round != seen && (round & STOP) as usize > member).then_some(round)
        };
        let members = (seen & STOP) as usize;
        if let Some(round) = self.look_out(member, members, || next(Ordering::Acquire)) {
            return round;
        }
        let asleep = &self.asleep[member - 1];
        asleep.store(true, Ordering::SeqCst);
        loop {
            if let Some(round) = next(Ordering::SeqCst) {
                asleep.store(false, Ordering::Relaxed);
                return round;
            }
            std::thread::park();
        }
    }

    /// Looks at `ready` for a while, a member of so many that take part; asks for what it will read next meanwhile.
    fn look_out<T>(
        &self,
        member: usize,
        members: usize,
        ready: impl Fn() -> Option<T>,
    ) -> Option<T> {
        // Spinning helps only members that have a core to themselves.
        if members > self.cpus {
            return ready();
        }
        loop {
            let found = ready();
            if found.is_some() {
                return found;
            }
            if !self.ahead[member].0.ask() {
                return spin(ready);
            }
            // The time that memory needs for what was asked. Without it three of four requests are dropped (Zen 5).
            std::hint::spin_loop();
        }
    }
}

/// Looks at `ready` for as long as [`SPIN`].
fn spin<T>(ready: impl Fn() -> Option<T>) -> Option<T> {
    let mut begin = None;
    loop {
        for _ in 0..LOOKS {
            let found = ready();
            if found.is_some() {
                return found;
            }
            std::hint::spin_loop();
        }
        if begin.get_or_insert_with(Instant::now).elapsed() >= SPIN {
            return None;
        }
        // Where threads share a core after all, the one waited for may need this one.
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::ThreadTeam;

    #[test]
    fn a_member_that_waits_asks_for_what_was_announced() {
        let team = ThreadTeam::new(2).unwrap();
        if team.rounds.cpus < 2 {
            return;
        }
        let ahead = &team.rounds.ahead[1].0;
        let pieces = [0..100, 4096..8192, 0..0, 0..0];
        // Of others than the caller whose turn it is nothing is taken.
        team.announce(1, &pieces);
        team.run(&|_| ());
        team.in_turn(2, || {
            assert_eq!(ahead.asked(), 0);
            team.announce(1, &pieces);
            team.run(&|_| ());
            let begin = Instant::now();
            while ahead.asked() < 4196 {
                assert!(begin.elapsed() < Duration::from_secs(60), "{} bytes", ahead.asked());
                std::thread::yield_now();
            }
        });
    }
}
