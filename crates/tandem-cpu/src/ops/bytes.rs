//! Bytes, whatever they mean.
#![allow(unsafe_code)]

use crate::cpu::Cpu;
use crate::disjoint::Disjoint;

/// Bytes handed to a thread at a time: some ten microseconds of copying.
const CHUNK: usize = 64 << 10;

/// Copies bytes with all threads: one alone is slower than the memory.
///
/// # Panics
/// When the lengths differ.
pub fn copy_bytes(cpu: &Cpu, from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "bytes to copy");
    let to = Disjoint::new(to);
    cpu.team().for_each_chunk(from.len(), CHUNK, &|chunk| {
        // SAFETY: every byte is in one chunk.
        let part = unsafe { to.part(chunk.start, chunk.len()) };
        part.copy_from_slice(&from[chunk]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ThreadTeam;

    #[test]
    fn every_byte_arrives() {
        let cpu = Cpu::new(ThreadTeam::new(3).unwrap());
        for len in [0, 1, CHUNK, 5 * CHUNK + 7] {
            let from: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let mut to = vec![0; len];
            copy_bytes(&cpu, &from, &mut to);
            assert!(to == from, "{len}");
        }
    }
}
