//! The persistent thread team.
//!
//! One token runs through hundreds of small operations, each a few microseconds of work for every core, so
//! handing work out must cost next to nothing. The team's threads live as long as the team. Between two
//! operations of a token they spin; after a while without work they sleep, so that an idle team uses no CPU
//! ([`rounds`]).
//!
//! The caller is itself member 0: a team of one starts no thread and calls the function directly.
//!
//! A process needs one team, however many callers it has: they take turns ([`turns`]), and in its turn a caller may
//! do with fewer members than there are. A server that decodes with some cores and reads prompts with all of them so
//! never has more threads at work than its team has members.
//!
//! A `run` from within a `run` (of this team or another) is executed by the calling member alone, all members'
//! shares one after the other, and so is a `run` of one team during a turn with another. So it gives the same
//! results, and it can never deadlock.

mod ahead;
mod rounds;
mod turns;

use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::affinity::{Bound, bind, unbind};
use crate::shares::Shares;
use rounds::{MAX_MEMBERS, Rounds};
use turns::{Place, Queue};

pub(crate) use ahead::{BUDGET, Pieces};

/// A fixed number of threads that run the same function together.
#[derive(Debug)]
pub struct ThreadTeam {
    rounds: Arc<Rounds>,
    workers: Vec<JoinHandle<()>>,
    queue: Queue,
    /// The CPU of each member; empty where members run wherever the system puts them.
    cpus: Vec<usize>,
}

impl ThreadTeam {
    /// A team of `threads` members: the caller of [`run`](Self::run) and `threads - 1` new threads.
    ///
    /// # Errors
    /// When `threads` is 0 or more than 65534, or the system refuses a thread.
    pub fn new(threads: usize) -> io::Result<Self> {
        if !(1..=MAX_MEMBERS).contains(&threads) {
            let message = format!("threads: expected 1 to {MAX_MEMBERS}, found {threads}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let rounds = Arc::new(Rounds::new(threads));
        let mut team =
            Self { rounds, workers: Vec::new(), queue: Queue::default(), cpus: Vec::new() };
        for member in 1..threads {
            let rounds = Arc::clone(&team.rounds);
            let builder = std::thread::Builder::new().name(format!("tandem-{member}"));
            // On failure `team` is dropped, which ends the threads already started.
            team.workers.push(builder.spawn(move || rounds.work(member))?);
        }
        Ok(team)
    }

    /// Binds each member to one CPU: member `i` to `cpus[i]`. Member 0 is whoever calls, and is bound for the length
    /// of its turn only: threads of a server that come and go stay free to run anywhere.
    ///
    /// Two teams that are bound to the same CPUs keep each other from working: bind only the one of a process that
    /// all callers share.
    ///
    /// # Errors
    /// When there are fewer CPUs than members, or the system refuses; members then run anywhere, as before.
    pub fn pin(&mut self, cpus: &[usize]) -> io::Result<()> {
        let members = self.size();
        let Some(cpus) = cpus.get(..members) else {
            let message =
                format!("CPUs: expected one for each of {members} threads, found {}", cpus.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let before: Vec<_> = (0..members).map(|_| Mutex::new(None)).collect();
        let failure = Mutex::new(None);
        self.run(&|member| match bind(cpus[member]) {
            Ok(free) => *lock(&before[member]) = Some(free),
            Err(e) => *lock(&failure) = Some(e),
        });
        let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failed = failure.is_some();
        self.run(&|member| {
            if failed || member == 0 {
                lock(&before[member]).iter().for_each(unbind);
            }
        });
        match failure {
            Some(failure) => Err(failure),
            None => {
                self.cpus = cpus.to_vec();
                Ok(())
            }
        }
    }

    /// Whether members are bound to a CPU each.
    pub fn is_pinned(&self) -> bool {
        !self.cpus.is_empty()
    }

    /// Members, the caller included.
    pub fn size(&self) -> usize {
        self.workers.len() + 1
    }

    /// Members that take part in what the calling thread [`run`](Self::run)s: as many as it asked for, if this is
    /// its turn, else all.
    pub fn threads(&self) -> usize {
        turns::place().members(self.id()).unwrap_or_else(|| self.size())
    }

    /// How often members have waited for each other so far: the rounds of work that were handed out to more than
    /// one member. Wraps after 2^48.
    pub fn rounds(&self) -> u64 {
        self.rounds.count()
    }

    /// Calls `f` while nobody else has the team, with `members` of it (at least 1, at most all) for everything that
    /// `f` runs on the team. The others sleep. Callers get their turns in the order in which they came, and sleep
    /// until then.
    ///
    /// A turn is best as long as a forward pass: handing it over means waking a sleeper, tens of microseconds.
    ///
    /// Within a turn or a `run`, of any team, `f` is just called.
    pub fn in_turn<R>(&self, members: usize, f: impl FnOnce() -> R) -> R {
        if !turns::place().is_outside() {
            return f();
        }
        let _turn = self.queue.wait();
        // Where the caller cannot be bound it works unbound.
        let _bound = self.cpus.first().map(|&cpu| Bound::to(cpu));
        turns::at(Place::turn(self.id(), members.clamp(1, self.size())), f)
    }

    /// Tells a member what it will read in a later round: while it waits, it asks for the first [`BUDGET`] bytes. That
    /// takes the place of what it was told before, so the time for it is right before the last round that comes earlier.
    ///
    /// It makes no difference to results, and nothing needs to be at the addresses. Only the caller whose turn it is
    /// knows what comes next: of others nothing is taken.
    pub(crate) fn announce(&self, member: usize, pieces: &Pieces) {
        if turns::place().is_turn(self.id()) {
            self.rounds.announce(member, pieces);
        }
    }

    /// Calls `f` once for every member, with the member's number, all at the same time. Returns when all are
    /// done; what they wrote is then visible to the caller.
    ///
    /// Within a `run` of any team the shares are executed one after the other by the calling thread.
    ///
    /// # Panics
    /// With the panic of a member (of one of them where several panic), once all members are done.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        let place = turns::place();
        let members = place.members(self.id()).unwrap_or_else(|| self.size());
        if members == 1 || !(place.is_outside() || place.is_turn(self.id())) {
            return (0..members).for_each(f);
        }
        self.in_turn(members, || self.round(members, f));
    }

    /// Runs one round. To be called in this team's turn only.
    fn round(&self, members: usize, f: &(dyn Fn(usize) + Sync)) {
        self.rounds.start(f, members, &self.workers);
        let share = Place::share(self.id(), members);
        let own = catch_unwind(AssertUnwindSafe(|| turns::at(share, || f(0))));
        self.rounds.finish(members);
        // `f` is no longer in use by anyone: from here on this function may unwind.
        if let Some(panic) = own.err().or(self.rounds.take_panic()) {
            resume_unwind(panic);
        }
    }

    /// Calls `f` with ranges that together cover `0..items` exactly once, each of `chunk` items (the last may
    /// be shorter). Shared out as by [`Self::for_each_range`].
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn for_each_chunk(&self, items: usize, chunk: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let chunk = chunk.max(1);
        let chunks = items.div_ceil(chunk);
        let range = |index: usize| index * chunk..((index + 1).saturating_mul(chunk)).min(items);
        if chunks <= 1 || self.threads() == 1 {
            return (0..chunks).for_each(|index| f(range(index)));
        }
        self.for_each_range(chunks, &|indices| indices.for_each(|index| f(range(index))));
    }

    /// Calls `f` with ranges that together cover `0..items` exactly once. A member's ranges are neighbours as far as
    /// they can be, and get smaller towards the end, so that members of different speed end together.
    ///
    /// # Panics
    /// As [`run`](Self::run), and when there are 2^32 items or more.
    pub fn for_each_range(&self, items: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
        let members = self.threads();
        if members == 1 || items <= 1 {
            if items > 0 {
                f(0..items);
            }
            return;
        }
        let shares = Shares::new(items, members);
        self.run(&|member| {
            while let Some(range) = shares.take(member) {
                f(range);
            }
        });
    }

    /// What tells teams apart as long as they exist.
    fn id(&self) -> usize {
        self.rounds.id()
    }
}

impl Drop for ThreadTeam {
    fn drop(&mut self) {
        self.rounds.stop(&self.workers);
        for worker in self.workers.drain(..) {
            // A worker catches its job's panics, so it cannot have ended by one.
            let _ = worker.join();
        }
    }
}

/// Locks, also after a panic: nothing in this module is left half-done by one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
