//! How long somebody was busy, of stretches of time that overlap.

use std::collections::VecDeque;

/// Stretches that ended longer ago than this are added up and forgotten: two seconds, in nanoseconds.
const HORIZON: u64 = 2_000_000_000;

/// Gaps up to this length count as busy: a microsecond, which the bookkeeping between two operations takes.
pub(super) const GAP: u64 = 1_000;

/// The length of a union of stretches of time, with its smallest gaps.
///
/// Stretches may come in any order, as long as each begins after the time that has been forgotten; of one that does not,
/// only the rest counts. Memory is bounded by what happens within the horizon.
#[derive(Debug, Default)]
pub(super) struct BusyTime {
    /// Gaps up to this length count as busy.
    gap: u64,
    forgotten: u64,
    /// Where the last forgotten stretch ended.
    forgotten_until: u64,
    /// Beginnings and ends of stretches with larger gaps between them, in order.
    stretches: VecDeque<(u64, u64)>,
}

impl BusyTime {
    /// Nothing yet. Gaps of at most so many nanoseconds will count as busy.
    pub(super) fn with_gap(gap: u64) -> Self {
        Self { gap, ..Self::default() }
    }

    /// Adds a stretch of time, in nanoseconds since some fixed moment, and answers what it became a part of: the stretch
    /// with all that it comes near. None where it was empty or has been forgotten.
    pub(super) fn add(&mut self, start: u64, end: u64) -> Option<(u64, u64)> {
        let (mut start, mut end) = (start.max(self.forgotten_until), end);
        if start >= end {
            return None;
        }
        // All that the stretch comes near becomes one with it: most often the newest, which is looked at first.
        let mut after = self.stretches.len();
        while after > 0 && self.stretches[after - 1].0 > end + self.gap {
            after -= 1;
        }
        let mut first = after;
        while first > 0 && self.stretches[first - 1].1 + self.gap >= start {
            first -= 1;
            let (s, e) = self.stretches[first];
            (start, end) = (start.min(s), end.max(e));
        }
        if first == after {
            self.stretches.insert(first, (start, end));
        } else {
            self.stretches[first] = (start, end);
            self.stretches.drain(first + 1..after);
        }
        self.forget();
        Some((start, end))
    }

    /// Nanoseconds in which there was at least one stretch, or a gap between two.
    pub(super) fn total(&self) -> u64 {
        self.forgotten + self.stretches.iter().map(|(start, end)| end - start).sum::<u64>()
    }

    fn forget(&mut self) {
        let newest = self.stretches.back().map_or(0, |&(_, end)| end);
        while let Some(&(start, end)) = self.stretches.front()
            && end + HORIZON < newest
        {
            self.stretches.pop_front();
            self.forgotten += end - start;
            self.forgotten_until = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_the_length_of_the_union(
            stretches in prop::collection::vec((0..300_usize, 0..40_usize), 0..40)
        ) {
            // Whatever is not busy is too long for a gap.
            let unit = GAP + 1;
            let mut busy = BusyTime::with_gap(GAP);
            let mut moments = [false; 340];
            for (start, length) in stretches {
                busy.add(start as u64 * unit, (start + length) as u64 * unit);
                moments[start..start + length].fill(true);
                let expected = moments.iter().filter(|busy| **busy).count() as u64;
                prop_assert_eq!(busy.total(), expected * unit);
            }
        }
    }

    #[test]
    fn gaps_of_a_microsecond_are_busy() {
        let mut busy = BusyTime::with_gap(GAP);
        for (start, end) in [(0, 5000), (6000, 7000), (8001, 9000)] {
            busy.add(start, end);
        }
        assert_eq!(busy.total(), 7000 + 999);
    }

    #[test]
    fn remembers_no_more_than_the_horizon() {
        let mut busy = BusyTime::with_gap(GAP);
        for second in 0..100 {
            busy.add(second * 1_000_000_000, second * 1_000_000_000 + 10);
        }
        assert_eq!(busy.total(), 1000);
        assert!(busy.stretches.len() <= 3, "{}", busy.stretches.len());
        // One that began before: what is after the last forgotten one counts, and nothing twice.
        busy.add(0, 100_000_000_000);
        let forgotten_until = busy.forgotten_until;
        assert_eq!(busy.total(), busy.forgotten + 100_000_000_000 - forgotten_until);
    }
}
