//! How the items of a job are shared out to the members of a team.
//!
//! Every member has a stretch of neighbouring items of its own, so that what it reads lies together in memory and is
//! fetched in one stream. It takes a quarter of what is left of its stretch at a time: few and large pieces first, and
//! single items at the end. A member whose stretch is used up takes from the end of another's, half of what is left
//! there. So members end together, up to one item, unless one is four times slower than the others: what a member has
//! taken nobody else can do.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A stretch that no cache line is shared with: members take from it all the time.
#[derive(Debug)]
#[repr(align(128))]
struct Stretch(AtomicU64);

/// The members' stretches.
#[derive(Debug)]
pub(crate) struct Shares {
    stretches: Vec<Stretch>,
}

impl Shares {
    /// Shares out `0..items`, evenly.
    ///
    /// # Panics
    /// When there are 2^32 items or more.
    pub(crate) fn new(items: usize, members: usize) -> Self {
        let items = u32::try_from(items).expect("fewer than 2^32 items of work");
        let at = |member: usize| (u64::from(items) * member as u64 / members as u64) as u32;
        let stretch = |member| Stretch(AtomicU64::new(pack(&(at(member)..at(member + 1)))));
        Self { stretches: (0..members).map(stretch).collect() }
    }

    /// The next items for a member; none once all are taken.
    pub(crate) fn take(&self, member: usize) -> Option<Range<usize>> {
        let own = self.stretches[member].take(|left| {
            let middle = left.start + left.len().div_ceil(4) as u32;
            (left.start..middle, middle..left.end)
        });
        own.or_else(|| self.take_from_others(member))
    }

    fn take_from_others(&self, member: usize) -> Option<Range<usize>> {
        let members = self.stretches.len();
        (1..members).find_map(|n| {
            self.stretches[(member + n) % members].take(|left| {
                let middle = left.end - left.len().div_ceil(2) as u32;
                (middle..left.end, left.start..middle)
            })
        })
    }
}

impl Stretch {
    /// Takes what `cut` gives first of what is left, and leaves the second.
    fn take(&self, cut: impl Fn(Range<u32>) -> (Range<u32>, Range<u32>)) -> Option<Range<usize>> {
        // Relaxed: who takes an item is all that matters here. The data itself is published by the team's round.
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let left = unpack(seen);
            if left.is_empty() {
                return None;
            }
            let (taken, rest) = cut(left);
            match self.0.compare_exchange_weak(
                seen,
                pack(&rest),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(taken.start as usize..taken.end as usize),
                Err(now) => seen = now,
            }
        }
    }
}

fn pack(range: &Range<u32>) -> u64 {
    u64::from(range.start) << 32 | u64::from(range.end)
}

fn unpack(bits: u64) -> Range<u32> {
    (bits >> 32) as u32..bits as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_item_is_taken_once_whoever_is_slow() {
        for (items, members) in [(0, 1), (1, 1), (1, 3), (7, 2), (100, 3), (4096, 4)] {
            for _ in 0..20 {
                let shares = Shares::new(items, members);
                let taken = Mutex::new(vec![0; items]);
                std::thread::scope(|scope| {
                    for member in 0..members {
                        let (shares, taken) = (&shares, &taken);
                        scope.spawn(move || {
                            while let Some(range) = shares.take(member) {
                                for item in range {
                                    taken.lock().unwrap()[item] += 1;
                                }
                            }
                        });
                    }
                });
                assert_eq!(taken.into_inner().unwrap(), vec![1; items], "{items} x {members}");
            }
        }
    }

    #[test]
    fn pieces_are_large_first_and_from_neighbours_last() {
        let shares = Shares::new(16, 2);
        let mut first = Vec::new();
        // The other member takes one piece and is slow with it.
        assert_eq!(shares.take(1), Some(8..10));
        while let Some(range) = shares.take(0) {
            first.push(range);
        }
        let own = [0..2, 2..4, 4..5, 5..6, 6..7, 7..8];
        let others = [13..16, 11..13, 10..11];
        assert_eq!(first, [&own[..], &others].concat());
        assert_eq!(shares.take(1), None);
    }
}
