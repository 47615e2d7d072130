//! The largest results of a product, found as they are computed.
//!
//! Sampling looks at a few tokens of a vocabulary of tens of thousands. Whoever computes a piece of the logits looks
//! through it while it is in the first-level cache, so nobody reads all of them again.

use std::cmp::Ordering;
use std::fmt;
use std::sync::atomic::{self, AtomicU32};
use std::sync::{Mutex, PoisonError};

/// Keeps the largest of one token's results, each with its row. Of equal ones the lower row counts as the larger.
/// Numbers that are not finite are left out, and rows that are not allowed.
pub struct Largest<'a> {
    count: usize,
    allowed: &'a (dyn Fn(u32) -> bool + Sync),
    kept: Mutex<Vec<(f32, u32)>>,
    /// The bits of a number that `count` kept ones are not below. It only grows: a look at an old one is never wrong.
    floor: AtomicU32,
}

impl<'a> Largest<'a> {
    /// Keeps `count` results of rows that are `allowed`.
    pub fn new(count: usize, allowed: &'a (dyn Fn(u32) -> bool + Sync)) -> Self {
        let floor = AtomicU32::new(f32::NEG_INFINITY.to_bits());
        Self { count, allowed, kept: Mutex::default(), floor }
    }

    /// What was kept, the largest first.
    pub fn into_sorted(self) -> Vec<(f32, u32)> {
        let mut kept = self.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        kept.sort_unstable_by(larger_first);
        kept.truncate(self.count);
        kept
    }

    /// Forgets what was kept.
    pub fn clear(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.floor.store(f32::NEG_INFINITY.to_bits(), atomic::Ordering::Relaxed);
    }

    /// Takes in the largest of all results, where somebody else has found it; answers whether that was all that is
    /// wanted.
    pub fn offer_best(&self, row: u32, result: f32) -> bool {
        let enough = self.count == 1 && result.is_finite() && (self.allowed)(row);
        if enough {
            self.keep(result, row);
        }
        enough
    }

    /// Takes in results of the rows from `first` on.
    pub fn offer(&self, first: usize, results: &[f32]) {
        if self.count == 0 {
            return;
        }
        let floor = f32::from_bits(self.floor.load(atomic::Ordering::Relaxed));
        for (row, &result) in (first..).zip(results) {
            // Row numbers are ids of tokens, which are 32 bits wide.
            let row = row as u32;
            if result >= floor && result.is_finite() && (self.allowed)(row) {
                self.keep(result, row);
            }
        }
    }

    fn keep(&self, result: f32, row: u32) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Adding 0 turns -0 into 0, which it equals.
        kept.push((result + 0.0, row));
        // Sorting out the smaller ones now and then costs less than keeping order.
        if kept.len() >= 2 * self.count {
            kept.select_nth_unstable_by(self.count - 1, larger_first);
            kept.truncate(self.count);
            self.floor.store(kept[self.count - 1].0.to_bits(), atomic::Ordering::Relaxed);
        }
    }
}

/// By falling result; equal ones by row.
fn larger_first(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

impl fmt::Debug for Largest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Largest").field("count", &self.count).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By sorting everything.
    fn sorted(numbers: &[f32], count: usize) -> Vec<(f32, u32)> {
        let mut all: Vec<_> = numbers
            .iter()
            .copied()
            .zip(0..)
            .filter(|(n, id)| n.is_finite() && id % 7 != 3)
            .collect();
        // -0 and 0 are equal to `partial_cmp`.
        all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        all.truncate(count);
        all
    }

    #[test]
    fn the_largest_come_out_sorted_whatever_the_order_of_pieces() {
        let mut rng = tandem_testkit::Rng::new(9);
        // Few different numbers, so that many are equal.
        let mut numbers: Vec<f32> = (0..5000).map(|_| (rng.normal() * 20.0).round()).collect();
        numbers[17] = f32::NAN;
        numbers[18] = f32::INFINITY;
        numbers[19] = f32::NEG_INFINITY;
        for count in [0, 1, 2, 40, 6000] {
            let expected = sorted(&numbers, count);
            for reverse in [false, true] {
                let allowed = |id| id % 7 != 3;
                let largest = Largest::new(count, &allowed);
                let mut pieces: Vec<(usize, &[f32])> =
                    numbers.chunks(16).enumerate().map(|(n, piece)| (n * 16, piece)).collect();
                if reverse {
                    pieces.reverse();
                }
                std::thread::scope(|scope| {
                    for half in pieces.chunks(pieces.len() / 2 + 1) {
                        let largest = &largest;
                        scope.spawn(move || half.iter().for_each(|(at, p)| largest.offer(*at, p)));
                    }
                });
                assert_eq!(largest.into_sorted(), expected, "{count} of 5000, reverse {reverse}");
            }
        }
    }

    #[test]
    fn the_best_is_enough_where_one_is_wanted_and_it_may_be_taken() {
        let allowed = |id| id != 3;
        let one = Largest::new(1, &allowed);
        assert!(!one.offer_best(3, 9.0) && !one.offer_best(1, f32::NAN));
        assert!(one.offer_best(4, 2.0));
        one.clear();
        assert!(one.offer_best(5, 1.0));
        assert_eq!(one.into_sorted(), [(1.0, 5)]);
        assert!(!Largest::new(2, &allowed).offer_best(4, 2.0));
    }

    #[test]
    fn zeros_of_either_sign_are_equal() {
        let largest = Largest::new(1, &|_| true);
        largest.offer(0, &[-0.0, 0.0]);
        assert_eq!(largest.into_sorted(), [(0.0, 0)]);
    }
}
