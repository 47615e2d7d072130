//! How much of the CPU's time other programs leave.

use std::time::{Duration, Instant};

/// A share is one of at least so much time.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks at the system's clocks of the CPU now and then.
#[derive(Debug)]
pub struct CpuIdle {
    before: Option<(Instant, Ticks)>,
    share: f64,
}

/// Time in the kernel's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    all: u64,
    idle: u64,
    /// Of this process.
    own: u64,
}

impl Default for CpuIdle {
    fn default() -> Self {
        Self { before: ticks().map(|ticks| (Instant::now(), ticks)), share: 1.0 }
    }
}

impl CpuIdle {
    /// The share of the CPU's time, 0 to 1, that was idle or this process's, over the last half second or more; 1 before
    /// that has passed, and where the system does not tell.
    pub fn share(&mut self) -> f64 {
        if let Some((at, before)) = self.before
            && at.elapsed() >= INTERVAL
            && let Some(now) = ticks()
        {
            self.share = share(before, now).unwrap_or(self.share);
            self.before = Some((Instant::now(), now));
        }
        self.share
    }
}

fn share(before: Ticks, now: Ticks) -> Option<f64> {
    let all = now.all.checked_sub(before.all).filter(|&all| all > 0)?;
    let ours = now.idle.saturating_sub(before.idle) + now.own.saturating_sub(before.own);
    Some((ours as f64 / all as f64).min(1.0))
}

fn ticks() -> Option<Ticks> {
    let all = std::fs::read_to_string("/proc/stat").ok()?;
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    parse(&all, &own)
}

/// From `/proc/stat` and `/proc/self/stat`: see `proc_stat(5)` and `proc_pid_stat(5)`.
fn parse(all: &str, own: &str) -> Option<Ticks> {
    let numbers = all.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user and nice already.
    let fields: Vec<u64> = numbers.take(8).filter_map(|number| number.parse().ok()).collect();
    let idle = fields.get(3)? + fields.get(4)?;
    // A program's name may have spaces and parentheses. After it: state, and utime and stime 11 and 12 further on.
    let mut own = own.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || own.next()?.parse::<u64>().ok();
    Some(Ticks { all: fields.iter().sum(), idle, own: next()? + next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_leave() {
        let all = "cpu  100 10 50 800 40 0 0 0 7 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        let own = "12 (a b) c) S 1 1 1 0 -1 4 5 6 7 8 30 12 0 0 20 0 3 0 99";
        let ticks = parse(all, own).unwrap();
        assert_eq!(ticks, Ticks { all: 1000, idle: 840, own: 42 });
        let later = Ticks { all: 1100, idle: 860, own: 92 };
        // Of 100 ticks 20 were idle and 50 our own.
        assert_eq!(share(ticks, later), Some(0.7));
        assert_eq!(share(ticks, ticks), None);
        assert_eq!(parse("", own), None);
        assert_eq!(parse(all, "12 (a"), None);
    }

    #[test]
    fn this_machine_tells() {
        assert!(ticks().is_some());
        let share = CpuIdle::default().share();
        assert!((0.0..=1.0).contains(&share), "{share}");
    }
}
