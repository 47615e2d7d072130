//! What members will read next: who waits asks for it.
//!
//! Between two products of a token the caller works alone for some microseconds, and memory would do nothing
//! meanwhile. What comes next is known long before: each layer's matrices follow each other. So the caller announces
//! it, stretch by stretch for each member, and a member that waits has the beginning of its stretch brought into its
//! second-level cache.
//!
//! An announcement is addresses and nothing else. Asking reads nothing that a program could see, so it makes no
//! difference to results, and an announcement that a member sees half of costs a moment's bandwidth and no more.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::prefetch::{LINE, prefetch_to_level_2};

/// Bytes that a member asks for: a quarter of AMD's second-level caches, half of an efficiency core's share of Intel's.
pub(crate) const BUDGET: usize = 256 << 10;
/// Addresses of what a member will read, the first first: room for quants and scales of two matrices.
pub(crate) type Pieces = [Range<usize>; 4];
/// Bytes asked for between two looks at what is waited for: the memory needs some 25 ns for them.
const STEP: usize = 16 * LINE;
/// Bits of `asked` that count bytes. The others number the announcement.
const BYTE_BITS: u32 = 32;

/// What one member will read next.
#[derive(Default)]
pub(super) struct Ahead {
    /// Counts announcements. Written by the caller, as the pieces are; wraps.
    number: AtomicU64,
    pieces: [Piece; 4],
    /// How much has been asked for, and of which announcement. Written by the member.
    asked: AtomicU64,
}

#[derive(Default)]
struct Piece {
    start: AtomicUsize,
    len: AtomicUsize,
}

impl Ahead {
    /// Takes the place of what was announced before. Of all pieces together the first [`BUDGET`] bytes count.
    pub(super) fn announce(&self, pieces: &Pieces) {
        let mut left = BUDGET;
        for (place, piece) in self.pieces.iter().zip(pieces) {
            let len = piece.len().min(left);
            left -= len;
            place.start.store(piece.start, Ordering::Relaxed);
            place.len.store(len, Ordering::Relaxed);
        }
        let number = self.number.load(Ordering::Relaxed);
        self.number.store(number.wrapping_add(1) & (u64::MAX >> BYTE_BITS), Ordering::Relaxed);
    }

    /// Asks for a few of the lines that were announced; answers whether there were any left.
    pub(super) fn ask(&self) -> bool {
        let number = self.number.load(Ordering::Relaxed);
        let asked = self.asked.load(Ordering::Relaxed);
        let done = if asked >> BYTE_BITS == number { asked as u32 as usize } else { 0 };
        let mut skip = done;
        for piece in &self.pieces {
            let (start, len) =
                (piece.start.load(Ordering::Relaxed), piece.len.load(Ordering::Relaxed));
            if skip < len {
                let bytes = STEP.min(len - skip);
                prefetch_to_level_2(start.wrapping_add(skip), bytes);
                self.asked.store(number << BYTE_BITS | (done + bytes) as u64, Ordering::Relaxed);
                return true;
            }
            skip -= len;
        }
        false
    }
}

#[cfg(test)]
impl Ahead {
    /// Bytes asked for of an announcement.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed) as u32 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked for until nothing is left.
    fn asked(ahead: &Ahead) -> usize {
        while ahead.ask() {}
        ahead.asked()
    }

    #[test]
    fn everything_announced_is_asked_for_once() {
        let ahead = Ahead::default();
        assert!(!ahead.ask());
        // No memory is needed where nothing is read.
        ahead.announce(&[4096..4096 + 10 * STEP, 0..0, 1 << 40..(1 << 40) + 100, 0..0]);
        assert_eq!(asked(&ahead), 10 * STEP + 100);
        assert!(!ahead.ask());
        ahead.announce(&[0..STEP, 0..0, 0..0, 0..0]);
        assert!(ahead.ask());
        assert!(!ahead.ask());
        ahead.announce(&[const { 0..0 }; 4]);
        assert!(!ahead.ask());
    }

    #[test]
    fn no_more_than_a_cache_takes() {
        let ahead = Ahead::default();
        ahead.announce(&[0..100, 1 << 20..1 << 30, 0..7, 0..8]);
        assert_eq!(asked(&ahead), BUDGET);
    }

    #[test]
    fn a_newer_announcement_takes_the_place_of_what_is_left() {
        let ahead = Ahead::default();
        ahead.announce(&[0..3 * STEP, 0..0, 0..0, 0..0]);
        assert!(ahead.ask());
        ahead.announce(&[0..2 * STEP, 0..0, 0..0, 0..0]);
        assert_eq!(asked(&ahead), 2 * STEP);
    }
}
