//! When steps ran on a GPU, by its own clock.

use std::time::{Duration, Instant};

use super::Igpu;
use crate::error::Result;
use crate::profile::{Operation, Profile};

/// Which times are kept. Each costs a call of the driver's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::executor) enum Times {
    /// None.
    #[default]
    Off,
    /// When each step ended.
    Steps,
    /// When each kernel began and when it ended: what the profile shows.
    Kernels,
}

/// Times of the newest run.
#[derive(Default)]
pub(super) struct StepTimes {
    kept: Times,
    steps: Vec<(Instant, Instant)>,
    clock: Option<Clock>,
}

/// A wait is one for the device from so much time on.
const REAL_WAIT: Duration = Duration::from_micros(30);

impl Igpu {
    /// Keeps such times from now on.
    ///
    /// # Errors
    /// When the driver fails.
    pub(in crate::executor) fn keep_times(&mut self, times: Times) -> tandem_gpu::Result<()> {
        self.times.kept = times;
        self.gpu.record_times(times != Times::Off)
    }

    /// Takes the times of the run that has just been waited for. `marks` has each operation with the launches up to its end,
    /// counted as [`tandem_gpu::Gpu::launches`] counts, of which there were `first` before.
    ///
    /// # Errors
    /// When the driver has no times.
    pub(in crate::executor) fn take_times(
        &mut self,
        profile: &mut Profile,
        first: usize,
        marks: &[(Operation, usize)],
    ) -> Result<()> {
        self.times.steps.clear();
        match self.times.kept {
            Times::Off => Ok(()),
            Times::Steps => self.take_steps(profile, first, marks),
            Times::Kernels => self.take_kernels(profile, first, marks),
        }
    }

    /// Kernels come one right after the other, so a step begins where the one before it has ended.
    fn take_steps(
        &mut self,
        profile: &Profile,
        first: usize,
        marks: &[(Operation, usize)],
    ) -> Result<()> {
        let last = |&(_, end): &(Operation, usize)| end.saturating_sub(first + 1);
        let kernels: Vec<usize> = marks.iter().map(last).collect();
        let Some((begun, ends)) = self.gpu.take_ends(&kernels)? else { return Ok(()) };
        let clock = self.clock(profile, ends.last().copied().unwrap_or(begun));
        let mut start = begun;
        self.times.steps.extend(ends.into_iter().map(|end| {
            // A step without kernels has no end of its own, and takes no time.
            let step = (clock.at(start), clock.at(end.max(start)));
            start = end.max(start);
            step
        }));
        Ok(())
    }

    fn take_kernels(
        &mut self,
        profile: &mut Profile,
        first: usize,
        marks: &[(Operation, usize)],
    ) -> Result<()> {
        let intervals = self.gpu.take_intervals()?;
        let last = intervals.last().map_or(0, |&(_, (_, end))| end);
        let clock = self.clock(profile, last);
        let (mut intervals, mut launched) = (intervals.into_iter(), first);
        let mut until = intervals.as_slice().first().map_or(0, |&(_, (start, _))| start);
        for &(operation, end) in marks {
            let kernels = intervals.by_ref().take(end - launched).map(|(_, interval)| interval);
            let kernels: Vec<(u64, u64)> = kernels.collect();
            let time = kernels.iter().map(|(start, end)| end.saturating_sub(*start)).sum();
            profile.on_gpu(operation, Duration::from_nanos(time));
            let begun = kernels.first().map_or(until, |&(start, _)| start);
            until = kernels.last().map_or(begun, |&(_, end)| end);
            self.times.steps.push((clock.at(begun), clock.at(until)));
            launched = end;
        }
        Ok(())
    }

    /// The device's clock, which was `last` when the newest kernel ended. The newest wait ended then; but where the CPU did not
    /// have to wait, since it had something else to do, nobody knows for how long that kernel had been done, other than by an
    /// earlier wait.
    fn clock(&mut self, profile: &Profile, last: u64) -> Clock {
        let now = profile.mark();
        let has_waited = now - profile.worked_until() > REAL_WAIT;
        match &mut self.times.clock {
            Some(clock) if !has_waited => Clock { now, ..*clock },
            clock => *clock.insert(Clock { then: now, time: last, now }),
        }
    }

    /// When each step of the newest run began and when it ended; nothing where times are not kept.
    pub(in crate::executor) fn step_times(
        &self,
    ) -> impl Iterator<Item = (Instant, Instant)> + use<'_> {
        self.times.steps.iter().copied()
    }
}

/// The device's clock, by the host's.
#[derive(Clone, Copy)]
struct Clock {
    /// A moment,
    then: Instant,
    /// and the device's clock at that moment.
    time: u64,
    /// Nothing that is asked for comes after this.
    now: Instant,
}

impl Clock {
    fn at(self, time: u64) -> Instant {
        let later = Duration::from_nanos(time.saturating_sub(self.time));
        let ago = Duration::from_nanos(self.time.saturating_sub(time));
        (self.then + later).checked_sub(ago).unwrap_or(self.then).min(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_and_after_the_one_that_is_known() {
        let then = Instant::now();
        let ms = |n| Duration::from_millis(n);
        let clock = Clock { then, time: 5_000_000, now: then + ms(4) };
        assert_eq!(clock.at(2_000_000), then - ms(3));
        assert_eq!(clock.at(8_000_000), then + ms(3));
        assert_eq!(clock.at(10_000_000), then + ms(4), "nothing ends after it was waited for");
    }
}
