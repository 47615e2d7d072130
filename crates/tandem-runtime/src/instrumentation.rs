//! Everything that watches an executor's passes and holds them back, with the threads behind it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bandwidth::{
    BandwidthStats, BandwidthToken, ByteCounters, HeavyOperations, Monitor, MonitorParams,
    Throttle, TokenMetrics, TokenParams,
};
use crate::error::{Result, RuntimeError};
use crate::executor::Instruments;
use crate::telemetry::{Recorder, Summary, Telemetry, TelemetryParams, Timeline};

/// What is watched, and what is held back.
#[derive(Clone, Debug, Default)]
pub struct InstrumentationParams {
    /// What is recorded, and where it goes; nothing where there is none.
    pub telemetry: Option<TelemetryParams>,
    /// How the memory's bandwidth is watched.
    pub monitor: MonitorParams,
    /// How the bandwidth token shares itself out.
    pub token: TokenParams,
    /// Operations that hold the bandwidth token; without them nobody does.
    pub heavy: Option<HeavyOperations>,
    /// GB/s that operations move at most.
    pub background_gbps: Option<f64>,
}

/// A telemetry session, a monitor, a bandwidth token and a throttle, and the [`Instruments`] that passes tell them by.
pub struct Instrumentation {
    telemetry: Mutex<Option<Telemetry>>,
    recorder: Recorder,
    monitor: Arc<Monitor>,
    token: BandwidthToken,
    instruments: Mutex<Instruments>,
}

impl Instrumentation {
    /// Starts to watch.
    ///
    /// # Errors
    /// Where a file cannot be made, the system refuses a thread, or the cap is none.
    pub fn start(params: InstrumentationParams) -> Result<Arc<Self>> {
        let InstrumentationParams { telemetry, monitor, token, heavy, background_gbps } = params;
        let throttle = throttle(background_gbps)?;
        let mut telemetry = telemetry.as_ref().map(Telemetry::start).transpose()?;
        let recorder = telemetry.as_ref().map_or_else(Recorder::off, Telemetry::recorder);
        let counters = ByteCounters::default();
        let monitor = Monitor::start(monitor, counters.clone(), recorder.clone())
            .map_err(|source| RuntimeError::Threads { threads: 1, source })?;
        let monitor = Arc::new(monitor);
        let token = BandwidthToken::new(token, recorder.clone());
        if let Some(telemetry) = &mut telemetry {
            telemetry.watch_bandwidth(Arc::clone(&monitor));
            telemetry.watch_token(token.clone());
        }
        let instruments = Instruments::default()
            .with_recorder(recorder.clone())
            .with_counters(counters)
            .with_throttle(throttle);
        let instruments = match heavy {
            Some(heavy) => instruments.with_token(token.clone(), heavy),
            None => instruments,
        };
        let telemetry = Mutex::new(telemetry);
        let instruments = Mutex::new(instruments);
        Ok(Arc::new(Self { telemetry, recorder, monitor, token, instruments }))
    }

    /// What an executor takes.
    pub fn instruments(&self) -> Instruments {
        lock(&self.instruments).clone()
    }

    /// Which operations hold the token from now on (none do where that is `None`); answers what an executor is to take
    /// instead of what it had.
    pub fn set_heavy(&self, heavy: Option<HeavyOperations>) -> Instruments {
        self.change(|instruments| match heavy {
            Some(heavy) => instruments.with_token(self.token.clone(), heavy),
            None => instruments.without_token(),
        })
    }

    /// So many GB/s at most from now on; answers what an executor is to take instead of what it had.
    ///
    /// # Errors
    /// Where that is not a positive number.
    pub fn set_background(&self, gbps: Option<f64>) -> Result<Instruments> {
        let throttle = throttle(gbps)?;
        Ok(self.change(|instruments| instruments.with_throttle(throttle)))
    }

    fn change(&self, change: impl FnOnce(Instruments) -> Instruments) -> Instruments {
        let mut instruments = lock(&self.instruments);
        *instruments = change(instruments.clone());
        instruments.clone()
    }

    /// Where others record what they do.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// The session so far; `None` without telemetry, or when it is over.
    pub fn summary(&self) -> Option<Summary> {
        lock(&self.telemetry).as_ref().map(Telemetry::summary)
    }

    /// How the memory is watched.
    pub fn monitor_params(&self) -> MonitorParams {
        self.monitor.params()
    }

    /// Use of the memory over the moving window.
    pub fn bandwidth(&self) -> BandwidthStats {
        self.monitor.window()
    }

    /// Use of the memory since the beginning.
    pub fn bandwidth_of_session(&self) -> BandwidthStats {
        self.monitor.session()
    }

    /// The bandwidth token.
    pub fn token(&self) -> &BandwidthToken {
        &self.token
    }

    /// Who holds the bandwidth token and who waits for it, and what has been so far.
    pub fn token_metrics(&self) -> TokenMetrics {
        self.token.metrics()
    }

    /// Tokens that each expert of each layer got; `None` without telemetry.
    pub fn expert_distribution(&self) -> Option<Vec<Vec<u64>>> {
        lock(&self.telemetry).as_ref().map(Telemetry::selections)
    }

    /// What the newest decode pass did; `None` without telemetry, or before the first.
    pub fn newest_decode(&self) -> Option<Timeline> {
        let packet = lock(&self.instruments).newest_decode()?;
        self.timeline(packet)
    }

    /// What the pass or work packet of that number did, as far as that is in memory; `None` without telemetry.
    pub fn timeline(&self, packet: u64) -> Option<Timeline> {
        lock(&self.telemetry).as_ref().map(|telemetry| telemetry.timeline(packet))
    }

    /// The recent past as a trace for Perfetto, in JSON; `None` without telemetry.
    pub fn trace(&self) -> Option<Vec<u8>> {
        lock(&self.telemetry).as_ref().map(Telemetry::trace)
    }

    /// Ends the session: completes its files, and answers the last summary; `None` where there was none, or it is over.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn finish(&self) -> Result<Option<Summary>> {
        let telemetry = lock(&self.telemetry).take();
        Ok(telemetry.map(Telemetry::finish).transpose()?)
    }
}

fn throttle(gbps: Option<f64>) -> Result<Option<Arc<Throttle>>> {
    Ok(gbps.map(Throttle::new).transpose()?.map(Arc::new))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
