//! Durations added up, with their quantiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest duration that is told apart from longer ones, in nanoseconds: a minute.
const LONGEST: u64 = 60_000_000_000;

/// Durations of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Durations {
    total: u64,
    /// In nanoseconds, to two digits.
    histogram: Histogram<u64>,
}

/// What is known about durations of one kind. Quantiles are right to 1 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DurationSummary {
    /// How many.
    pub count: u64,
    /// Sum.
    pub total_ms: f64,
    /// Mean; 0 where there are none.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// What 99 % do not exceed.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Default for Durations {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST, 2);
        Self { total: 0, histogram: histogram.expect("bounds in order, digits in range") }
    }
}

impl Durations {
    /// Adds a duration in nanoseconds.
    pub(crate) fn add(&mut self, nanoseconds: u64) {
        self.total += nanoseconds;
        self.histogram.saturating_record(nanoseconds);
    }

    /// Adds a duration.
    pub(crate) fn add_duration(&mut self, duration: Duration) {
        self.add(duration.as_nanos() as u64);
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Sum in nanoseconds.
    pub(crate) const fn total(&self) -> u64 {
        self.total
    }

    /// What is known about them.
    pub(crate) fn summary(&self) -> DurationSummary {
        let (count, total_ms) = (self.count(), milliseconds(self.total));
        let quantile = |q| milliseconds(self.histogram.value_at_quantile(q));
        DurationSummary {
            count,
            total_ms,
            mean_ms: if count == 0 { 0.0 } else { total_ms / count as f64 },
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            max_ms: milliseconds(self.histogram.max()),
        }
    }
}

/// Milliseconds of so many nanoseconds.
pub(crate) const fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_hundred() {
        let mut durations = Durations::default();
        assert_eq!(durations.summary(), DurationSummary::default());
        (1..=100).for_each(|ms| durations.add_duration(Duration::from_millis(ms)));
        let summary = durations.summary();
        assert_eq!((summary.count, summary.total_ms, summary.mean_ms), (100, 5050.0, 50.5));
        for (found, expected) in
            [(summary.p50_ms, 50.0), (summary.p99_ms, 99.0), (summary.max_ms, 100.0)]
        {
            assert!((found / expected - 1.0_f64).abs() < 0.01, "{found} for {expected}");
        }
    }

    #[test]
    fn a_duration_beyond_all_bounds_counts_as_the_longest() {
        let mut durations = Durations::default();
        durations.add(u64::MAX / 2);
        durations.add(0);
        assert_eq!(durations.summary().count, 2);
        assert!(durations.summary().max_ms >= milliseconds(LONGEST));
    }
}
