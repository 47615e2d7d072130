//! Rates, from readings of counters one after the other.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::memory_controller::Traffic;
use crate::device::Device;

/// What the memory lets through, in bytes per second, as calibration found it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// To the CPU alone.
    pub cpu: f64,
    /// To the iGPU alone.
    pub igpu: f64,
    /// To both at once.
    pub together: f64,
}

/// Counters at some time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Since some fixed moment.
    pub(super) at: Duration,
    /// Bytes that operations counted, in the order of [`Device::ALL`].
    pub(super) counted: [u64; Device::ALL.len()],
    /// What the memory controller counted, where it does.
    pub(super) controller: Option<Traffic>,
}

/// Where a figure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Tandem's operations counted what they must read and write.
    Counted,
    /// The memory controller counted what the whole machine reads and writes.
    MemoryController,
}

/// The memory's use over a stretch of time. `docs/telemetry.md` defines the figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BandwidthStats {
    /// Length of the stretch.
    pub seconds: f64,
    /// Bytes that operations on the CPU counted, per time.
    pub cpu_bandwidth_gbps: f64,
    /// Bytes that operations on the iGPU counted, per time.
    pub igpu_bandwidth_gbps: f64,
    /// Where the two come from: always [`Source::Counted`], as a memory controller does not know who asks.
    pub bandwidth_source: Source,
    /// What the memory controller read for the whole machine; none where it cannot be asked.
    pub memory_controller_read_gbps: Option<f64>,
    /// What it wrote.
    pub memory_controller_write_gbps: Option<f64>,
    /// Why the memory controller cannot be asked.
    pub memory_controller_unavailable: Option<String>,
    /// Share of the capacity that is in use, 0 to 1 (more, where the capacity was underrated); none without a
    /// calibrated capacity.
    pub utilization: Option<f64>,
    /// Whose bytes utilization is about.
    pub utilization_source: Source,
    /// Share of the time in which both devices moved bytes and used at least the threshold's share of the capacity.
    pub cpu_igpu_contention: Option<f64>,
}

/// Readings: the newest ones, and what is worth knowing about all.
#[derive(Debug)]
pub(super) struct History {
    capacity: Option<Capacity>,
    threshold: f64,
    /// Intervals that the window has.
    window: usize,
    first: Reading,
    /// The window's readings, at most one more than it has intervals, each with the time in contention up to then.
    recent: VecDeque<(Reading, Duration)>,
}

impl History {
    /// A history that begins with `first`. See [`MonitorParams`](super::MonitorParams) for the others.
    pub(super) fn new(
        first: Reading,
        window: usize,
        capacity: Option<Capacity>,
        threshold: f64,
    ) -> Self {
        let recent = VecDeque::from([(first, Duration::ZERO)]);
        Self { capacity, threshold, window: window.max(1), first, recent }
    }

    /// The counters now.
    pub(super) fn push(&mut self, reading: Reading) {
        let (last, mut contended) = self.newest();
        if self.is_contended(&last, &reading) {
            contended += reading.at.saturating_sub(last.at);
        }
        self.recent.push_back((reading, contended));
        if self.recent.len() > self.window + 1 {
            self.recent.pop_front();
        }
    }

    /// Use since the last reading but one.
    pub(super) fn newest_interval(&self) -> BandwidthStats {
        let from = self.recent.len().saturating_sub(2);
        self.between(self.recent[from])
    }

    /// Use over the window.
    pub(super) fn of_window(&self) -> BandwidthStats {
        self.between(self.recent[0])
    }

    /// Use since the beginning.
    pub(super) fn of_all(&self) -> BandwidthStats {
        self.between((self.first, Duration::ZERO))
    }

    fn newest(&self) -> (Reading, Duration) {
        self.recent[self.recent.len() - 1]
    }

    /// Use from a reading to the newest one.
    fn between(&self, (from, contended_before): (Reading, Duration)) -> BandwidthStats {
        let (to, contended) = self.newest();
        let seconds = to.at.saturating_sub(from.at).as_secs_f64();
        let [cpu, igpu] = counted_rates(&from, &to);
        let controller = controller_rates(&from, &to);
        let (used, utilization_source) = used(&from, &to);
        let contended = (contended - contended_before).as_secs_f64();
        BandwidthStats {
            seconds,
            cpu_bandwidth_gbps: cpu / 1e9,
            igpu_bandwidth_gbps: igpu / 1e9,
            bandwidth_source: Source::Counted,
            memory_controller_read_gbps: controller.map(|rates| rates.read / 1e9),
            memory_controller_write_gbps: controller.map(|rates| rates.written / 1e9),
            memory_controller_unavailable: None,
            utilization: self.capacity.map(|capacity| used / capacity.of(cpu > 0.0, igpu > 0.0)),
            utilization_source,
            cpu_igpu_contention: self.capacity.map(|_| per(contended, seconds)),
        }
    }

    fn is_contended(&self, from: &Reading, to: &Reading) -> bool {
        let both = counted_rates(from, to).iter().all(|&rate| rate > 0.0);
        both && self
            .capacity
            .is_some_and(|capacity| used(from, to).0 >= self.threshold * capacity.together)
    }
}

impl Capacity {
    /// The capacity for those devices that read.
    const fn of(&self, cpu: bool, igpu: bool) -> f64 {
        match (cpu, igpu) {
            (true, false) => self.cpu,
            (false, true) => self.igpu,
            _ => self.together,
        }
    }
}

/// Bytes per second that operations counted, by device.
fn counted_rates(from: &Reading, to: &Reading) -> [f64; 2] {
    let seconds = to.at.saturating_sub(from.at).as_secs_f64();
    Device::ALL.map(|device| {
        let bytes = to.counted[device as usize].saturating_sub(from.counted[device as usize]);
        per(bytes as f64, seconds)
    })
}

/// Bytes per second that the memory controller counted.
fn controller_rates(from: &Reading, to: &Reading) -> Option<Traffic> {
    let seconds = to.at.saturating_sub(from.at).as_secs_f64();
    let (from, to) = (from.controller?, to.controller?);
    let rate = |from: f64, to: f64| per((to - from).max(0.0), seconds);
    Some(Traffic { read: rate(from.read, to.read), written: rate(from.written, to.written) })
}

/// Bytes per second that are in use, by the better of the sources: the memory controller sees other programs as well.
fn used(from: &Reading, to: &Reading) -> (f64, Source) {
    match controller_rates(from, to) {
        Some(rates) => (rates.read + rates.written, Source::MemoryController),
        None => (counted_rates(from, to).iter().sum(), Source::Counted),
    }
}

/// A quotient; 0 where no time has passed.
fn per(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: Capacity = Capacity { cpu: 40e9, igpu: 50e9, together: 80e9 };
    const START: Reading = Reading { at: Duration::ZERO, counted: [0; 2], controller: None };

    fn history(window: usize) -> History {
        History::new(START, window, Some(CAPACITY), 0.85)
    }

    /// A reading so many ms after the start, the devices' counters in MB.
    fn reading(ms: u64, cpu: u64, igpu: u64) -> Reading {
        let counted = [cpu * 1_000_000, igpu * 1_000_000];
        Reading { at: Duration::from_millis(ms), counted, controller: None }
    }

    #[test]
    fn the_window_forgets_and_the_whole_does_not() {
        let mut history = history(2);
        for reading in [reading(10, 300, 0), reading(20, 300, 0), reading(30, 500, 100)] {
            history.push(reading);
        }
        let window = history.of_window();
        assert_eq!((window.seconds, window.cpu_bandwidth_gbps), (0.02, 10.0));
        assert_eq!(window.igpu_bandwidth_gbps, 5.0);
        let all = history.of_all();
        assert_eq!((all.seconds, all.cpu_bandwidth_gbps), (0.03, 0.5 / 0.03));
        let newest = history.newest_interval();
        assert_eq!((newest.cpu_bandwidth_gbps, newest.igpu_bandwidth_gbps), (20.0, 10.0));
    }

    #[test]
    fn utilization_is_of_the_capacity_of_who_reads() {
        let mut history = history(1);
        history.push(reading(10, 200, 0));
        assert_eq!(history.of_window().utilization, Some(0.5));
        history.push(reading(20, 200, 100));
        assert_eq!(history.of_window().utilization, Some(0.2));
        history.push(reading(30, 400, 300));
        assert_eq!(history.of_window().utilization, Some(0.5));
        assert_eq!(history.of_window().utilization_source, Source::Counted);
    }

    #[test]
    fn contention_is_both_at_once_near_the_capacity() {
        let mut history = history(4);
        history.push(reading(10, 400, 300)); // 70 of 80 GB/s
        history.push(reading(20, 800, 500)); // 60 of 80
        history.push(reading(30, 1600, 500)); // 80, of one device
        history.push(reading(40, 2000, 900)); // 80
        assert_eq!(history.of_window().cpu_igpu_contention, Some(0.5));
        history.push(reading(50, 2000, 900));
        // The first interval has left the window.
        assert_eq!(history.of_window().cpu_igpu_contention, Some(0.25));
        assert_eq!(history.of_all().cpu_igpu_contention, Some(0.02 / 0.05));
    }

    #[test]
    fn the_memory_controller_decides_what_is_in_use() {
        let traffic = |read, written| Some(Traffic { read, written });
        let first = Reading { controller: traffic(1e9, 0.0), ..START };
        let mut history = History::new(first, 5, Some(CAPACITY), 0.85);
        history.push(Reading { controller: traffic(1.5e9, 0.2e9), ..reading(10, 100, 100) });
        let stats = history.of_window();
        assert_eq!(stats.memory_controller_read_gbps, Some(50.0));
        assert_eq!(stats.memory_controller_write_gbps, Some(20.0));
        assert_eq!(
            (stats.utilization, stats.utilization_source),
            (Some(0.875), Source::MemoryController)
        );
        assert_eq!((stats.cpu_bandwidth_gbps, stats.cpu_igpu_contention), (10.0, Some(1.0)));
    }

    #[test]
    fn nothing_is_made_up_without_capacity_or_time() {
        let mut history = History::new(START, 5, None, 0.85);
        let stats = history.of_window();
        assert_eq!((stats.seconds, stats.cpu_bandwidth_gbps), (0.0, 0.0));
        history.push(reading(10, 1, 1));
        let stats = history.of_window();
        assert_eq!((stats.utilization, stats.cpu_igpu_contention), (None, None));
        assert_eq!(stats.memory_controller_read_gbps, None);
    }

    proptest! {
        #[test]
        fn the_window_has_the_bytes_of_its_intervals(
            window in 1..60_usize,
            steps in prop::collection::vec((1..30_u64, 0..500_u64, 0..500_u64), 1..120),
        ) {
            let mut history = history(window);
            let (mut ms, mut cpu, mut igpu) = (0, 0, 0);
            for step in &steps {
                (ms, cpu, igpu) = (ms + step.0, cpu + step.1, igpu + step.2);
                history.push(reading(ms, cpu, igpu));
            }
            let newest = &steps[steps.len().saturating_sub(window)..];
            let seconds = newest.iter().map(|step| step.0).sum::<u64>() as f64 / 1e3;
            let gb = newest.iter().map(|step| step.1).sum::<u64>() as f64 / 1e3;
            let stats = history.of_window();
            prop_assert!((stats.seconds - seconds).abs() < 1e-9);
            prop_assert!((stats.cpu_bandwidth_gbps - gb / seconds).abs() < 1e-6);
            let contention = stats.cpu_igpu_contention.unwrap();
            prop_assert!((0.0..=1.0).contains(&contention));
        }
    }
}
