//! What a device's memory allows: the figures that kernels are held against.
#![allow(unsafe_code)]

use std::time::Instant;

use serde::Serialize;

use crate::error::Result;
use crate::gpu::{Gpu, GpuVec, RegionMut, Scope, Work};
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
    let bytes = BYTES.min(gpu.device().info().max_allocation as usize / 4).next_multiple_of(4096);
    // Pages that were never written may all be one page of zeros.
    let from = gpu.upload(&vec![1u8; bytes])?;
    let mut to = gpu.upload(&vec![2u8; bytes])?;
    let read = best(gpu, "read_all", &from, &mut to)?;
    let copy = best(gpu, "copy", &from, &mut to)?;
    Ok(Bandwidth { read: bytes as f64 / read, copy: 2.0 * bytes as f64 / copy })
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
    from: &crate::gpu::Region<'_, u8>,
    to: &RegionMut<'_, u8>,
) -> Result<()> {
    let units = scope.gpu().device().info().compute_units as usize;
    let global = [units * GROUPS_PER_UNIT * GROUP, 1, 1];
    let work = Work { source: SOURCE, name, defines: &[], global, local: [GROUP, 1, 1] };
    // SAFETY: both buffers have the same size, of which the kernels use so many units of 16 bytes.
    unsafe { scope.launch(work, &[from.into(), to.into(), (from.len() / 16).into()]) }
}
