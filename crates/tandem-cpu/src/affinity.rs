//! On which CPUs a thread may run.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;

/// CPUs that a mask holds: as many as Linux can be built for.
pub(crate) const MAX_CPUS: usize = 8192;

/// A set of CPUs, as the system takes it.
#[derive(Clone)]
pub(crate) struct CpuMask([libc::c_ulong; MAX_CPUS / WORD]);

const WORD: usize = libc::c_ulong::BITS as usize;

impl CpuMask {
    fn of(cpu: usize) -> io::Result<Self> {
        let mut mask = Self([0; MAX_CPUS / WORD]);
        let Some(word) = mask.0.get_mut(cpu / WORD) else {
            let message = format!("CPU: expected less than {MAX_CPUS}, found {cpu}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        *word = 1 << (cpu % WORD);
        Ok(mask)
    }

    /// The numbers of the CPUs.
    pub(crate) fn cpus(&self) -> Vec<usize> {
        (0..MAX_CPUS).filter(|cpu| self.0[cpu / WORD] >> (cpu % WORD) & 1 == 1).collect()
    }
}

#[cfg(target_os = "linux")]
impl CpuMask {
    /// Where the calling thread may run.
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        let mut mask = Self([0; MAX_CPUS / WORD]);
        // SAFETY: the system writes at most as many bytes as it is told, which is the mask's size; any bits are a
        // valid mask. Thread 0 is the calling one.
        let code =
            unsafe { libc::sched_getaffinity(0, size_of_val(&mask.0), (&raw mut mask.0).cast()) };
        if code == 0 { Ok(mask) } else { Err(io::Error::last_os_error()) }
    }

    /// Lets the calling thread run on these CPUs only.
    fn apply(&self) -> io::Result<()> {
        // SAFETY: the system reads as many bytes as it is told, which is the mask's size.
        let code =
            unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), (&raw const self.0).cast()) };
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(not(target_os = "linux"))]
impl CpuMask {
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn apply(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Binds the calling thread to one CPU; answers where it could run before.
pub(crate) fn bind(cpu: usize) -> io::Result<CpuMask> {
    let before = CpuMask::of_this_thread()?;
    CpuMask::of(cpu)?.apply()?;
    Ok(before)
}

/// Undoes [`bind`] in the thread that did it.
pub(crate) fn unbind(before: &CpuMask) {
    // What was allowed a moment ago can be refused only if the administrator took those CPUs away, and then the
    // system has moved the thread by itself.
    let _ = before.apply();
}

/// The calling thread on one CPU, for as long as this exists. Stays in the thread that made it.
pub(crate) struct Bound {
    before: CpuMask,
    here: PhantomData<*const ()>,
}

impl Bound {
    pub(crate) fn to(cpu: usize) -> io::Result<Self> {
        Ok(Self { before: bind(cpu)?, here: PhantomData })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        unbind(&self.before);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// `/proc` is the oracle: the kernel's own list of the CPUs that a thread may run on.
    fn allowed_list() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        list.unwrap().trim().to_owned()
    }

    #[test]
    fn a_thread_is_bound_for_as_long_as_it_wants() {
        let before = allowed_list();
        let cpus = CpuMask::of_this_thread().unwrap().cpus();
        assert_eq!(cpus.len(), std::thread::available_parallelism().unwrap().get());
        for cpu in cpus {
            let bound = Bound::to(cpu).unwrap();
            assert_eq!(allowed_list(), cpu.to_string());
            assert_eq!(CpuMask::of_this_thread().unwrap().cpus(), [cpu]);
            drop(bound);
            assert_eq!(allowed_list(), before);
        }
    }

    #[test]
    fn cpus_that_are_not_there_are_refused() {
        for cpu in [MAX_CPUS - 1, MAX_CPUS, usize::MAX] {
            assert!(Bound::to(cpu).is_err(), "{cpu}");
        }
    }
}
