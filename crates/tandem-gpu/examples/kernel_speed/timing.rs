//! Time of launches.

use std::time::Instant;

use tandem_gpu::{Gpu, Result, ops};

/// Seconds of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// On the device, by its events: the median.
    pub(crate) kernel: f64,
    /// Of the time that all launches took together, from the first call to the end of the last, while no times are kept, which
    /// makes launches take longer: the best round.
    pub(crate) in_a_row: f64,
}

/// Times the launches of the kernels named that `round` makes within one scope, in so many rounds after one that compiles.
pub(crate) fn time(
    gpu: &Gpu,
    rounds: usize,
    names: &[&str],
    mut round: impl FnMut() -> Result<()>,
) -> Result<Times> {
    round()?;
    gpu.record_times(true)?;
    let mut kernels = Vec::new();
    for _ in 0..rounds {
        round()?;
        let times = gpu.take_times()?;
        kernels.extend(
            times.iter().filter(|(kernel, _)| names.contains(kernel)).map(|(_, time)| *time),
        );
    }
    gpu.record_times(false)?;
    let launches = kernels.len() / rounds;
    let mut in_a_row = f64::INFINITY;
    for _ in 0..rounds {
        let started = Instant::now();
        round()?;
        in_a_row = in_a_row.min(started.elapsed().as_secs_f64() / launches as f64);
    }
    kernels.sort_by(f64::total_cmp);
    Ok(Times { kernel: kernels[kernels.len() / 2], in_a_row })
}

/// What a launch costs that has next to nothing to do.
pub(crate) fn empty_launch(gpu: &Gpu) -> Result<f64> {
    let up = gpu.zeros::<f32>(1)?;
    let mut gate = gpu.zeros::<f32>(1)?;
    let times = time(gpu, 5, &["silu_mul"], || {
        gpu.scope(|scope| {
            let (up, gate) = (scope.vec(&up)?, scope.vec_mut(&mut gate)?);
            (0..1000).try_for_each(|_| ops::silu_mul(scope, &gate, &up))
        })
    })?;
    Ok(times.in_a_row)
}
