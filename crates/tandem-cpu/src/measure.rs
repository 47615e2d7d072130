//! What the machine can do at most: the figures that rates are held against.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::cpu::Cpu;
use crate::prefetch::{AHEAD, prefetch};

/// Bytes that a thread reads before it asks for more.
const CHUNK: usize = 1 << 20;

/// How memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The processor alone sees what will be needed.
    Plain,
    /// It is told early, as the products do.
    Prefetched,
}

/// Reads all of `memory` once with the whole team; answers bytes per second.
///
/// `memory` should be much larger than the caches and touched before. Adding up 64-bit words costs less than fetching
/// them, so the time is the memory's.
pub fn read_pass(cpu: &Cpu, memory: &[u64], reading: Reading) -> f64 {
    let total = AtomicU64::new(0);
    let started = Instant::now();
    let words = CHUNK / size_of::<u64>();
    cpu.team().for_each_chunk(memory.len(), words, &|range| {
        let words = &memory[range];
        let sum = match reading {
            Reading::Plain => sum::<false>(words),
            Reading::Prefetched => sum::<true>(words),
        };
        total.fetch_add(sum, Ordering::Relaxed);
    });
    let seconds = started.elapsed().as_secs_f64();
    // The sum is looked at, so that nothing can leave the reading out.
    std::hint::black_box(total.into_inner());
    size_of_val(memory) as f64 / seconds
}

/// Bytes per second that the team reads from `memory`: the middle of three passes, for the better way of reading. See
/// [`read_pass`].
pub fn read_bandwidth(cpu: &Cpu, memory: &[u64]) -> f64 {
    let rate = |reading| {
        let mut rates = [(); 3].map(|()| read_pass(cpu, memory, reading));
        rates.sort_by(f64::total_cmp);
        rates[1]
    };
    rate(Reading::Plain).max(rate(Reading::Prefetched))
}

/// Multiplies and adds 8-bit numbers in registers with the whole team; answers operations per second, a multiplication
/// and its addition being two.
pub fn int8_peak(cpu: &Cpu) -> f64 {
    peak(cpu, |rounds| cpu.packed().multiply_adds(rounds))
}

/// Multiplies and adds f32 in registers with the whole team; answers operations per second, a multiplication and its
/// addition being two.
pub fn float_peak(cpu: &Cpu) -> f64 {
    peak(cpu, |rounds| cpu.attention().multiply_adds(rounds))
}

/// Operations per second of what makes so many multiplications in so many rounds.
fn peak(cpu: &Cpu, multiply_adds: impl Fn(usize) -> usize + Sync) -> f64 {
    // A few milliseconds: longer than threads take to begin, shorter than a processor takes to heat up.
    let rounds = 1 << 20;
    let total = AtomicU64::new(0);
    let started = Instant::now();
    cpu.team().run(&|_| {
        total.fetch_add(multiply_adds(rounds) as u64, Ordering::Relaxed);
    });
    2.0 * total.into_inner() as f64 / started.elapsed().as_secs_f64()
}

/// Eight sums side by side, which compilers turn into vectors.
fn sum<const PREFETCHED: bool>(words: &[u64]) -> u64 {
    let mut sums = [0u64; 8];
    let (chunks, rest) = words.as_chunks::<8>();
    for chunk in chunks {
        if PREFETCHED {
            prefetch(chunk, AHEAD);
        }
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    rest.iter().chain(&sums).fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ThreadTeam;

    #[test]
    fn every_word_is_read_once() {
        let words: Vec<u64> = (0..100_003).collect();
        assert_eq!(sum::<false>(&words), words.iter().sum::<u64>());
        assert_eq!(sum::<true>(&words), words.iter().sum::<u64>());
        let cpu = Cpu::new(ThreadTeam::new(2).unwrap());
        for reading in [Reading::Plain, Reading::Prefetched] {
            let rate = read_pass(&cpu, &words, reading);
            assert!(rate.is_finite() && rate > 0.0);
        }
        for peak in [int8_peak(&cpu), float_peak(&cpu)] {
            assert!(peak.is_finite() && peak > 0.0);
        }
    }
}
