//! The conformance suite of the operations: one suite, run against every instruction set of this machine.
//!
//! The oracles are the plain loops in f64 of `tandem_testkit::oracle`. A sum of `n` terms in lanes is allowed
//! `n / LANES` roundings and a few, each relative to the sum of the terms' magnitudes.

mod attention;
mod matmul;
#[cfg(feature = "onednn")]
mod onednn;
mod packed;
mod small;

use tandem_cpu::{Cpu, Isa, ThreadTeam};

/// The smallest number of independent partial sums that any instruction set uses.
const LANES: usize = 8;

/// Every instruction set of this machine, alone and with more threads than most tests need.
fn every_cpu() -> Vec<Cpu> {
    let cpus = |isa| [1, 3].map(|n| Cpu::with_isa(ThreadTeam::new(n).unwrap(), isa).unwrap());
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).flat_map(cpus).collect()
}

/// Runs `check` for each of them.
fn on_every_isa(check: impl Fn(&Cpu)) {
    every_cpu().iter().for_each(check);
}

/// Roundings that a sum of `n` terms may take.
fn roundings(n: usize) -> f64 {
    (n / LANES + 2 * LANES) as f64
}

/// Numbers that look random: SplitMix64, so that a failing case can be repeated.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }
}

#[test]
fn the_best_isa_is_detected_and_others_can_be_asked_for() {
    let best = Isa::detect();
    assert!(best.is_available());
    assert!(Isa::ALL.into_iter().all(|isa| isa <= best || !isa.is_available()));
    assert_eq!(Cpu::new(ThreadTeam::new(1).unwrap()).isa(), best);
    for isa in Isa::ALL {
        match Cpu::with_isa(ThreadTeam::new(1).unwrap(), isa) {
            Ok(cpu) => assert_eq!(cpu.isa(), isa),
            Err(error) => assert!(!isa.is_available() && error.to_string().contains(isa.name())),
        }
    }
}
