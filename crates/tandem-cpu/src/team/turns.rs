//! Whose turn it is, and what a thread is to a team at the moment.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;

thread_local! {
    static PLACE: Cell<Place> = const { Cell::new(Place::OUTSIDE) };
}

/// What a thread is to a team.
#[derive(Clone, Copy)]
pub(super) struct Place {
    kind: Kind,
    /// [`ThreadTeam::id`](super::ThreadTeam) of the team.
    team: usize,
    members: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has nothing to do with any team.
    Outside,
    /// It has the turn.
    Turn,
    /// It runs a member's share of a round.
    Share,
}

impl Place {
    const OUTSIDE: Self = Self { kind: Kind::Outside, team: 0, members: 0 };

    pub(super) const fn turn(team: usize, members: usize) -> Self {
        Self { kind: Kind::Turn, team, members }
    }

    pub(super) const fn share(team: usize, members: usize) -> Self {
        Self { kind: Kind::Share, team, members }
    }

    pub(super) fn is_outside(self) -> bool {
        self.kind == Kind::Outside
    }

    /// Whether the thread has this team's turn, and runs no share.
    pub(super) fn is_turn(self, team: usize) -> bool {
        self.kind == Kind::Turn && self.team == team
    }

    /// Members that take part, where the thread is in a turn or a round of this team.
    pub(super) fn members(self, team: usize) -> Option<usize> {
        (self.kind != Kind::Outside && self.team == team).then_some(self.members)
    }
}

/// What the calling thread is.
pub(super) fn place() -> Place {
    PLACE.get()
}

/// Calls `f` with the thread being `place`.
pub(super) fn at<R>(place: Place, f: impl FnOnce() -> R) -> R {
    struct Back(Place);
    impl Drop for Back {
        fn drop(&mut self) {
            PLACE.set(self.0);
        }
    }
    let _back = Back(PLACE.replace(place));
    f()
}

/// First come, first served. A plain mutex would let a caller that comes back at once keep all others out.
#[derive(Debug, Default)]
pub(super) struct Queue {
    tickets: Mutex<Tickets>,
    next: Condvar,
}

#[derive(Debug, Default)]
struct Tickets {
    given: u64,
    done: u64,
}

impl Queue {
    /// Waits for the calling thread's turn, which ends with what this returns.
    pub(super) fn wait(&self) -> Turn<'_> {
        let mut tickets = lock(&self.tickets);
        let ticket = tickets.given;
        tickets.given += 1;
        while tickets.done != ticket {
            tickets = self.next.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }
}

/// The turn of whoever holds this.
pub(super) struct Turn<'a>(&'a Queue);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut tickets = lock(&self.0.tickets);
        tickets.done += 1;
        let others = tickets.done != tickets.given;
        drop(tickets);
        if others {
            self.0.next.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_come_first_served() {
        let queue = Queue::default();
        let order = Mutex::new(Vec::new());
        let turn = queue.wait();
        std::thread::scope(|scope| {
            for caller in 1..=4 {
                let (queue, order) = (&queue, &order);
                scope.spawn(move || {
                    let _turn = queue.wait();
                    order.lock().unwrap().push(caller);
                });
                // The next one comes when this one is in the queue.
                while lock(&queue.tickets).given <= caller {
                    std::thread::yield_now();
                }
            }
            assert!(lock(&order).is_empty());
            drop(turn);
        });
        assert_eq!(order.into_inner().unwrap(), [1, 2, 3, 4]);
    }
}
