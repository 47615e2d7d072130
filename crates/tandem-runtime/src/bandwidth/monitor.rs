//! A look at the counters every 10 ms.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::counters::ByteCounters;
use super::history::{BandwidthStats, Capacity, History, Reading};
use super::memory_controller::MemoryController;
use crate::telemetry::{Gauge, Recorder};
use crate::ticker::Ticker;

/// How a [`Monitor`] looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MonitorParams {
    /// Time between two looks; a millisecond at least.
    pub interval: Duration,
    /// Intervals that the moving window has.
    pub window: usize,
    /// What the memory lets through; without it there is no utilization and no contention.
    pub capacity: Option<Capacity>,
    /// Share of the capacity from which on two devices are in each other's way.
    pub contention_threshold: f64,
}

impl Default for MonitorParams {
    /// 50 intervals of 10 ms, no capacity, 85 % of it.
    fn default() -> Self {
        let interval = Duration::from_millis(10);
        Self { interval, window: 50, capacity: None, contention_threshold: 0.85 }
    }
}

/// Watches the memory's bandwidth until it is dropped.
#[derive(Debug)]
pub struct Monitor {
    watch: Arc<Mutex<Watch>>,
    params: MonitorParams,
    _ticker: Ticker,
}

#[derive(Debug)]
struct Watch {
    started: Instant,
    counters: ByteCounters,
    /// The memory controller's counters, or why there are none.
    controller: Result<MemoryController, String>,
    history: History,
}

impl Monitor {
    /// Watches `counters`, and the memory controller's where the machine has them and permits it. What it sees goes to
    /// `recorder` too.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        params: MonitorParams,
        counters: ByteCounters,
        recorder: Recorder,
    ) -> io::Result<Self> {
        let MonitorParams { interval, window, capacity, contention_threshold } = params;
        let started = Instant::now();
        let mut controller = MemoryController::open().map_err(|error| error.to_string());
        let first = read(started, &counters, &mut controller);
        let history = History::new(first, window, capacity, contention_threshold);
        let watch = Arc::new(Mutex::new(Watch { started, counters, controller, history }));
        let watched = Arc::clone(&watch);
        let interval = interval.max(Duration::from_millis(1));
        let ticker = Ticker::start("tandem-monitor", interval, move || {
            let mut watch = lock(&watched);
            watch.look();
            watch.report(&recorder);
        })?;
        Ok(Self { watch, params, _ticker: ticker })
    }

    /// What it was started with.
    pub fn params(&self) -> MonitorParams {
        self.params
    }

    /// Use of the memory over the moving window.
    pub fn window(&self) -> BandwidthStats {
        let watch = lock(&self.watch);
        watch.explained(watch.history.of_window())
    }

    /// Use of the memory since the monitor was started, up to now.
    pub fn session(&self) -> BandwidthStats {
        let mut watch = lock(&self.watch);
        watch.look();
        watch.explained(watch.history.of_all())
    }
}

impl Watch {
    fn look(&mut self) {
        let reading = read(self.started, &self.counters, &mut self.controller);
        self.history.push(reading);
    }

    /// Records the newest rates.
    fn report(&self, recorder: &Recorder) {
        let newest = self.history.newest_interval();
        recorder.level(Gauge::CpuBandwidth, newest.cpu_bandwidth_gbps);
        recorder.level(Gauge::IgpuBandwidth, newest.igpu_bandwidth_gbps);
        let controller =
            newest.memory_controller_read_gbps.zip(newest.memory_controller_write_gbps);
        if let Some((read, written)) = controller {
            recorder.level(Gauge::MemoryControllerBandwidth, read + written);
        }
    }

    /// With the reason why there is nothing from the memory controller.
    fn explained(&self, stats: BandwidthStats) -> BandwidthStats {
        let memory_controller_unavailable = self.controller.as_ref().err().cloned();
        BandwidthStats { memory_controller_unavailable, ..stats }
    }
}

/// Reads all counters. A memory controller that fails once is not asked again.
fn read(
    started: Instant,
    counters: &ByteCounters,
    controller: &mut Result<MemoryController, String>,
) -> Reading {
    let traffic = controller.as_mut().ok().map(MemoryController::traffic);
    let traffic = traffic.transpose().unwrap_or_else(|error| {
        *controller = Err(format!("the memory controller's counters cannot be read: {error}"));
        None
    });
    Reading { at: started.elapsed(), counted: counters.totals(), controller: traffic }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    // A reading that was begun is simply not there.
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn sees_what_is_counted_while_it_runs() {
        let counters = ByteCounters::default();
        counters.add(Device::Cpu, 1_000_000);
        let capacity = Some(Capacity { cpu: 1e12, igpu: 1e12, together: 1e12 });
        let params = MonitorParams {
            interval: Duration::from_millis(1),
            capacity,
            ..MonitorParams::default()
        };
        let monitor = Monitor::start(params, counters.clone(), Recorder::off()).unwrap();
        counters.add(Device::Cpu, 3_000_000);
        counters.add(Device::Igpu, 1_000_000);
        let all = monitor.session();
        let counted = (all.cpu_bandwidth_gbps + all.igpu_bandwidth_gbps) * all.seconds;
        assert!((counted - 0.004).abs() < 1e-9, "what was there before does not count: {counted}");
        assert!((all.cpu_bandwidth_gbps / all.igpu_bandwidth_gbps - 3.0).abs() < 1e-6);
        assert!(all.utilization.is_some());
        let there = all.memory_controller_read_gbps.is_some();
        assert_ne!(there, all.memory_controller_unavailable.is_some());
        // The thread looks on its own.
        while monitor.window().seconds <= all.seconds {
            std::thread::yield_now();
        }
    }
}
