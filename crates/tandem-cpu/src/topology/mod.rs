//! The cores of this machine: how many threads to use by default, and which CPU to bind each to.
//!
//! A *CPU* is what the system numbers: a thread of a core. Cores are of up to three classes. Decoding is bound by
//! memory, and a prompt by arithmetic; for both the default is one thread on every core that is not of the low-power
//! class:
//!
//! - *One thread per core.* The second thread of a core (SMT) brings no arithmetic units and no bandwidth of its own,
//!   but one more member that every round waits for. Only where a single core is all there is (a container or a VM
//!   with two CPUs that say they are siblings) both its threads are used: two threads hide more of the memory's
//!   latency than one, and what a VM says about siblings is often not so.
//! - *No low-power cores.* The two LP-E cores of Intel's Meteor Lake sit on another die, without a share of the
//!   last-level cache, at half the clock. Work is handed out in pieces small enough that P and E cores end
//!   together; the piece that an LP-E core took last makes all others wait.
//! - *No more than may run.* CPUs that are offline or that the process may not use (`taskset`, cgroups) do not count,
//!   and a cgroup's CPU quota is an upper bound.
//!
//! Where classes come from:
//!
//! | | |
//! |---|---|
//! | Intel | the lists `cpu_core`, `cpu_atom` and (since Linux 6.12) `cpu_lowpower` under `/sys/devices`. Older kernels count LP-E cores as `cpu_atom`: of those, the ones without a third-level cache, if others have one. (On Lunar Lake none has one, and they are ordinary E cores by speed.) |
//! | others | `cpu_capacity`, else `cpuinfo_max_freq`, as a share of the fastest core's: from 4/5 on performance, from 1/2 on efficiency, below that low-power. Favoured cores and boost limits differ by less than a fifth. |
//!
//! Nothing of this is sure to be there or to make sense. What cannot be read counts as not there; without a list of
//! CPUs, every one that may be used counts as a core, and if that is not known either, the number that the standard
//! library knows is the answer.

mod sysfs;

use std::cmp::Reverse;
use std::fmt::Write;
use std::path::Path;

use crate::affinity::CpuMask;
use sysfs::Cpus;
pub use sysfs::cpu_list;

/// What kind of core it is, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CoreClass {
    /// P cores, "big" cores, and all cores of machines with one kind.
    Performance,
    /// E cores and others of more than half the fastest one's speed.
    Efficiency,
    /// LP-E cores, "little" cores.
    LowPower,
}

impl CoreClass {
    const ALL: [Self; 3] = [Self::Performance, Self::Efficiency, Self::LowPower];

    /// The name that users know.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Performance => "P",
            Self::Efficiency => "E",
            Self::LowPower => "LP-E",
        }
    }
}

/// A physical core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// What kind it is.
    pub class: CoreClass,
    /// Those of its CPUs that this process may use, at least one, in ascending order.
    pub cpus: Vec<usize>,
}

/// The cores that this process may use.
#[derive(Clone, Debug)]
pub struct Topology {
    /// Fastest first.
    cores: Vec<Core>,
    /// Threads that may run at the same time, by the system's word.
    limit: usize,
}

impl Topology {
    /// The cores of this machine, for the calling thread.
    pub fn detect() -> Self {
        let allowed = CpuMask::of_this_thread().ok().map(|mask| mask.cpus());
        let limit = std::thread::available_parallelism().map_or(1, usize::from);
        Self::read(Path::new("/sys"), allowed.as_deref(), limit)
    }

    /// The cores that the folder `sys` tells of, as `/sys` does on Linux, of which `allowed` may be used (or all), by
    /// at most `limit` threads at a time.
    pub fn read(sys: &Path, allowed: Option<&[usize]>, limit: usize) -> Self {
        let cpus = Cpus::read(sys);
        let mut cores: Vec<(CoreClass, Reverse<u64>, Vec<usize>)> = cpus
            .cores()
            .into_iter()
            .filter_map(|(class, mut cpus_of_core)| {
                let speed = cpus_of_core.iter().filter_map(|&cpu| cpus.max_frequency(cpu)).max();
                cpus_of_core.retain(|cpu| allowed.is_none_or(|allowed| allowed.contains(cpu)));
                (!cpus_of_core.is_empty())
                    .then(|| (class, Reverse(speed.unwrap_or(0)), cpus_of_core))
            })
            .collect();
        cores.sort();
        let mut cores: Vec<Core> =
            cores.into_iter().map(|(class, _, cpus)| Core { class, cpus }).collect();
        if cores.is_empty() {
            let alone = |&cpu| Core { class: CoreClass::Performance, cpus: vec![cpu] };
            cores = allowed.unwrap_or_default().iter().map(alone).collect();
        }
        Self { cores, limit: limit.max(1) }
    }

    /// The cores, fastest first; none where the system tells nothing.
    pub fn cores(&self) -> &[Core] {
        &self.cores
    }

    /// How many threads to compute with unless told otherwise: see the module's text.
    pub fn default_threads(&self) -> usize {
        match self.chosen() {
            [] => self.limit,
            [only] => only.cpus.len().min(self.limit),
            chosen => chosen.len().min(self.limit),
        }
    }

    /// CPUs to bind threads to, as many as there are: the fastest cores first, one CPU of each, then the cores'
    /// other CPUs.
    pub fn pin_order(&self) -> Vec<usize> {
        let most = self.cores.iter().map(|core| core.cpus.len()).max().unwrap_or(0);
        (0..most)
            .flat_map(|i| self.cores.iter().filter_map(move |c| c.cpus.get(i).copied()))
            .collect()
    }

    /// Which cores so many threads are meant for, where cores differ and the number is the default one: "6 P + 8 E
    /// cores (2 LP-E left out)".
    pub fn describe(&self, threads: usize) -> Option<String> {
        let count = |class| self.cores.iter().filter(|core: &&Core| core.class == class).count();
        let mixed = CoreClass::ALL.into_iter().filter(|&class| count(class) > 0).count() > 1;
        if !mixed || threads != self.chosen().len() {
            return None;
        }
        let parts: Vec<String> = CoreClass::ALL[..2]
            .iter()
            .filter(|&&class| count(class) > 0)
            .map(|&class| format!("{} {}", count(class), class.name()))
            .collect();
        let mut text = format!("{} core{}", parts.join(" + "), if threads == 1 { "" } else { "s" });
        let left_out = count(CoreClass::LowPower);
        if left_out > 0 {
            let _ = write!(text, " ({left_out} {} left out)", CoreClass::LowPower.name());
        }
        Some(text)
    }

    /// The cores that get a thread by default.
    fn chosen(&self) -> &[Core] {
        match self.cores.partition_point(|core| core.class != CoreClass::LowPower) {
            // Where there are no others.
            0 => &self.cores,
            count => &self.cores[..count],
        }
    }
}
