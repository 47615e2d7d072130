//! Bytes, whatever they mean.
#![allow(unsafe_code)]

use crate::cpu::Cpu;
use crate::disjoint::Disjoint;

/// Bytes handed to a thread at a time: some ten microseconds of copying.
const CHUNK: usize = 64 << 10;

/// Copies bytes with all threads, which one alone does more slowly than memory could, and all pairs of a source and a place
/// in one go: waking the threads takes as long as some of the copying.
///
/// # Panics
/// When the lengths of a pair differ.
pub fn copy_bytes<const N: usize>(cpu: &Cpu, pairs: [(&[u8], &mut [u8]); N]) {
    let pairs = pairs.map(|(from, to)| {
        assert_eq!(from.len(), to.len(), "bytes to copy");
        (from, Disjoint::new(to))
    });
    let chunks: usize = pairs.iter().map(|(from, _)| from.len().div_ceil(CHUNK)).sum();
    cpu.team().for_each_chunk(chunks, 1, &|numbers| {
        for mut number in numbers {
            for (from, to) in &pairs {
                let of_pair = from.len().div_ceil(CHUNK);
                if number < of_pair {
                    let (start, end) = (number * CHUNK, ((number + 1) * CHUNK).min(from.len()));
                    // SAFETY: every chunk of every pair has one number, and every number is handed out once.
                    unsafe { to.part(start, end - start) }.copy_from_slice(&from[start..end]);
                    break;
                }
                number -= of_pair;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ThreadTeam;

    #[test]
    fn every_byte_arrives() {
        let cpu = Cpu::new(ThreadTeam::new(3).unwrap());
        let numbers = |len: usize| (0..len).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>();
        let from = [0, 1, CHUNK, 5 * CHUNK + 7].map(numbers);
        let mut to = from.each_ref().map(|from| vec![0; from.len()]);
        let [a, b, c, d] = &mut to;
        copy_bytes(&cpu, [(&from[0], a), (&from[1], b), (&from[2], c), (&from[3], d)]);
        assert!(to == from);
    }
}
