//! What a device's memory allows: the figures that kernels are held against.
#![allow(unsafe_code)]

use std::time::Instant;

use serde::Serialize;

use crate::error::Result;
use crate::gpu::{Gpu, GpuVec, Region, RegionMut, Scope, Work};
use crate::path::GROUP;
use crate::program::Source;

pub(crate) const SOURCE: Source =
    Source { file: "bandwidth.cl", text: include_str!("../kernels/bandwidth.cl") };

/// Bytes of one of the two buffers: far more than any cache, and little time.
const BYTES: usize = 128 << 20;
/// Measurements, of which the best counts: everything that disturbs one makes it slower.
const RUNS: usize = 5;
/// Launches of a measurement, one after the other: a fast device's launch takes as long as half a pass over the memory.
const PASSES: usize = 8;
/// Work-groups for each compute unit: enough to have every unit busy at all times.
const GROUPS_PER_UNIT: usize = 16;
/// Empty steps whose time is taken.
const HAND_OFFS: usize = 100;
/// Kernels in the queue at most while something else is measured: drivers hold no end of them.
const MAX_QUEUED: usize = 1000;

/// Bytes per second, read and written bytes counted alike.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bandwidth {
    /// Of reading.
    pub read: f64,
    /// Of copying.
    pub copy: f64,
}

/// Measures what kernels reach on a device's memory.
///
/// # Errors
/// When memory cannot be had or the driver fails.
pub fn bandwidth(gpu: &Gpu) -> Result<Bandwidth> {
    let (from, mut to) = buffers(gpu)?;
    let bytes = from.len() as f64;
    let read = best(gpu, "read_all", &from, &mut to)?;
    let copy = best(gpu, "copy", &from, &mut to)?;
    Ok(Bandwidth { read: bytes / read, copy: 2.0 * bytes / copy })
}

/// Bytes per second that a device reads while `work`, which takes about so many seconds, uses the memory as well; and
/// what `work` answers.
///
/// # Errors
/// When memory cannot be had or the driver fails.
pub fn read_beside<T>(gpu: &Gpu, seconds: f64, work: impl FnOnce() -> T) -> Result<(f64, T)> {
    let (from, mut to) = buffers(gpu)?;
    let alone = best(gpu, "read_all", &from, &mut to)?;
    let count = ((seconds / alone).ceil() as usize).clamp(2, MAX_QUEUED);
    gpu.record_times(true)?;
    let answer = gpu.scope(|scope| {
        let (from, to) = (scope.vec(&from)?, scope.vec_mut(&mut to)?);
        for _ in 0..count {
            launch(scope, "read_all", &from, &to)?;
        }
        scope.submit()?;
        Ok(work())
    });
    let times = gpu.take_times();
    gpu.record_times(false)?;
    // The later ones may have come when `work` was done.
    let during = &times?[..count / 2];
    let seconds: f64 = during.iter().map(|(_, seconds)| seconds).sum();
    Ok(((from.len() * during.len()) as f64 / seconds, answer?))
}

/// Seconds from handing a device a kernel that does next to nothing until the CPU knows that it is done: the median of
/// many.
///
/// # Errors
/// When memory cannot be had or the driver fails.
pub fn hand_off(gpu: &Gpu) -> Result<f64> {
    let (from, mut to) = (gpu.upload(&[1u8; 16])?, gpu.upload(&[2u8; 16])?);
    let mut seconds = Vec::with_capacity(HAND_OFFS);
    for _ in 0..HAND_OFFS {
        let started = Instant::now();
        gpu.scope(|scope| {
            launch_groups(scope, "copy", &scope.vec(&from)?, &scope.vec_mut(&mut to)?, 1)
        })?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[HAND_OFFS / 2])
}

/// Memory to read from and to write to.
fn buffers(gpu: &Gpu) -> Result<(GpuVec<u8>, GpuVec<u8>)> {
    let bytes = BYTES.min(gpu.device().info().max_allocation as usize / 4).next_multiple_of(4096);
    // Pages that were never written may all be one page of zeros.
    Ok((gpu.upload(&vec![1u8; bytes])?, gpu.upload(&vec![2u8; bytes])?))
}

/// Seconds of a pass in the fastest run, from the call to its end.
fn best(gpu: &Gpu, name: &'static str, from: &GpuVec<u8>, to: &mut GpuVec<u8>) -> Result<f64> {
    let mut best = f64::INFINITY;
    // The first run compiles, and is not counted.
    for run in 0..=RUNS {
        let started = Instant::now();
        gpu.scope(|scope| {
            let (from, to) = (scope.vec(from)?, scope.vec_mut(to)?);
            (0..PASSES).try_for_each(|_| launch(scope, name, &from, &to))
        })?;
        if run > 0 {
            best = best.min(started.elapsed().as_secs_f64() / PASSES as f64);
        }
    }
    Ok(best)
}

fn launch(
    scope: &Scope<'_, '_>,
    name: &'static str,
    from: &Region<'_, u8>,
    to: &RegionMut<'_, u8>,
) -> Result<()> {
    let units = scope.gpu().device().info().compute_units as usize;
    launch_groups(scope, name, from, to, units * GROUPS_PER_UNIT)
}

/// As [`launch`], with so many work-groups.
fn launch_groups(
    scope: &Scope<'_, '_>,
    name: &'static str,
    from: &Region<'_, u8>,
    to: &RegionMut<'_, u8>,
    groups: usize,
) -> Result<()> {
    let global = [groups * GROUP, 1, 1];
    let work = Work { source: SOURCE, name, defines: &[], global, local: [GROUP, 1, 1] };
    // SAFETY: both buffers have the same size, of which the kernels use so many units of 16 bytes.
    unsafe { scope.launch(work, &[from.into(), to.into(), (from.len() / 16).into()]) }
}
