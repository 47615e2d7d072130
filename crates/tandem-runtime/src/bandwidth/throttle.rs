//! Background mode: Tandem's own use of the memory stays below a cap, so that the rest of the computer stays responsive.
//!
//! A token bucket over bytes. It fills at the cap's rate up to what the cap lets through in 10 ms; operations take out
//! what they have moved, and may leave a debt, which whoever took last sleeps off before the next operation. In any
//! stretch of time the bytes moved so exceed the cap by no more than one filling and one operation of each thread.
//! Within an operation the memory is read as fast as ever: the cap is one on the mean over some operations.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time whose bytes the bucket holds.
const FILLING: Duration = Duration::from_millis(10);

/// Time, as a [`Throttle`] sees it.
pub trait Clock: Debug {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
    /// Lets time pass, at least that much.
    fn sleep(&self, duration: Duration);
}

/// The system's time.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// Keeps what passes through it below a cap.
#[derive(Debug)]
pub struct Throttle<C = SystemClock> {
    bytes_per_second: f64,
    clock: C,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Bytes; below 0 where more has been taken out than was there.
    level: f64,
    /// When the level was that.
    at: Duration,
}

/// A cap that is none.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("bandwidth cap: expected more than 0 GB/s, found {found}")]
pub struct BadCap {
    /// The cap in GB/s.
    pub found: f64,
}

impl Throttle {
    /// Lets so many GB/s pass.
    ///
    /// # Errors
    /// When `gbps` is not a positive number.
    pub fn new(gbps: f64) -> Result<Self, BadCap> {
        Self::with_clock(gbps, SystemClock::default())
    }
}

impl<C: Clock> Throttle<C> {
    /// As [`Throttle::new`], by another clock.
    ///
    /// # Errors
    /// As [`Throttle::new`].
    pub fn with_clock(gbps: f64, clock: C) -> Result<Self, BadCap> {
        if !(gbps.is_finite() && gbps > 0.0) {
            return Err(BadCap { found: gbps });
        }
        let bytes_per_second = gbps * 1e9;
        let full = Bucket { level: bytes_per_second * FILLING.as_secs_f64(), at: clock.now() };
        Ok(Self { bytes_per_second, clock, bucket: Mutex::new(full) })
    }

    /// Called after an operation that moved so many bytes: sleeps as long as the next one must not begin.
    pub fn passed(&self, bytes: u64) {
        let debt = self.take(bytes);
        if !debt.is_zero() {
            self.clock.sleep(debt);
        }
    }

    /// Takes bytes out; answers how long it takes until the bucket is not in debt.
    fn take(&self, bytes: u64) -> Duration {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let elapsed = now.saturating_sub(bucket.at).as_secs_f64();
        let filled = bucket.level + elapsed * self.bytes_per_second;
        bucket.level = filled.min(FILLING.as_secs_f64() * self.bytes_per_second) - bytes as f64;
        bucket.at = now;
        // A cap of a few bytes per second and a large operation make a debt beyond what a duration holds.
        Duration::try_from_secs_f64(-bucket.level / self.bytes_per_second)
            .unwrap_or(if bucket.level < 0.0 { Duration::MAX } else { Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// Time passes only when somebody sleeps or works.
    #[derive(Debug, Default)]
    struct FakeClock {
        now: Cell<Duration>,
        /// What a sleep lasts longer than asked for.
        oversleep: Duration,
    }

    impl FakeClock {
        fn advance(&self, duration: Duration) {
            self.now.set(self.now.get() + duration);
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> Duration {
            self.now.get()
        }

        fn sleep(&self, duration: Duration) {
            self.advance(duration + self.oversleep);
        }
    }

    fn throttle(gbps: f64, oversleep: Duration) -> Throttle<FakeClock> {
        Throttle::with_clock(gbps, FakeClock { oversleep, ..FakeClock::default() }).unwrap()
    }

    #[test]
    fn a_steady_reader_gets_the_cap() {
        // 4 MB take 0.1 ms at 40 GB/s; the system wakes sleepers 0.06 ms late.
        let throttle = throttle(5.0, Duration::from_micros(60));
        for _ in 0..1000 {
            throttle.clock.advance(Duration::from_micros(100));
            throttle.passed(4_000_000);
        }
        let rate = 4e9 / throttle.clock.now().as_secs_f64();
        assert!((rate / 5e9 - 1.0).abs() < 0.02, "{rate}");
    }

    #[test]
    fn who_stays_below_never_sleeps() {
        let throttle = throttle(5.0, Duration::ZERO);
        for _ in 0..1000 {
            throttle.clock.advance(Duration::from_millis(1));
            throttle.passed(4_900_000);
        }
        assert_eq!(throttle.clock.now(), Duration::from_secs(1));
    }

    #[test]
    fn what_was_saved_up_does_not_add_up() {
        let throttle = throttle(1.0, Duration::ZERO);
        throttle.clock.advance(Duration::from_secs(3600));
        let before = throttle.clock.now();
        throttle.passed(1_000_000_000);
        assert_eq!(throttle.clock.now() - before, Duration::from_millis(990));
    }

    #[test]
    fn caps_that_are_none_are_refused() {
        for gbps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Throttle::new(gbps).unwrap_err().to_string();
            assert!(
                error.starts_with("bandwidth cap: expected more than 0 GB/s, found"),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_cap_holds_over_every_stretch_of_time(
            gbps in 0.1..50.0_f64,
            oversleep in 0..300_u64,
            operations in prop::collection::vec((0..100_000_000_u64, 0..5_000_u64), 1..100),
        ) {
            let throttle = throttle(gbps, Duration::from_micros(oversleep));
            // When each operation began and ended, and its bytes.
            let done: Vec<(f64, f64, u64)> = operations
                .iter()
                .map(|&(bytes, microseconds)| {
                    let begun = throttle.clock.now().as_secs_f64();
                    throttle.clock.advance(Duration::from_micros(microseconds));
                    let ended = throttle.clock.now().as_secs_f64();
                    throttle.passed(bytes);
                    (begun, ended, bytes)
                })
                .collect();
            let filling = gbps * 1e9 * FILLING.as_secs_f64();
            for (first, &(begun, ..)) in done.iter().enumerate() {
                let mut sum = 0.0;
                for &(_, ended, bytes) in &done[first..] {
                    let allowed = gbps * 1e9 * (ended - begun) + filling;
                    // Of the last operation nothing had to be there before it began.
                    prop_assert!(sum <= allowed + 1.0, "{sum} of {allowed}");
                    sum += bytes as f64;
                }
            }
        }
    }
}
