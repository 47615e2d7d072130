//! The section `bandwidth_control`.

use std::time::Duration;

use crate::bandwidth::{Capacity, HeavyOperations, MonitorParams};
use crate::partition::section::{Result, Section};
use crate::partition::yaml::Value;

/// How the memory's bandwidth is watched and shared out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BandwidthControl {
    /// Whether heavy operations hold the bandwidth token.
    pub token: bool,
    /// Which operations those are.
    pub heavy_operations: HeavyOperations,
    /// Time between two looks at the counters.
    pub interval: Duration,
    /// Looks that the moving window has.
    pub window: usize,
    /// Share of the capacity above which the policy `bandwidth_aware` acts.
    pub throttle_threshold: f64,
    /// What it does then.
    pub throttle_action: ThrottleAction,
}

/// What the policy `bandwidth_aware` does while more of the bandwidth is used than the threshold says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThrottleAction {
    /// Prompts go through the model in smaller parts.
    #[default]
    ReduceBatch,
    /// Prompts wait a little before their next part.
    DelayLaunch,
    /// The CPU computes everything.
    FallbackCpu,
}

impl ThrottleAction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ReduceBatch, Self::DelayLaunch, Self::FallbackCpu];

    /// The name in configs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReduceBatch => "reduce_batch",
            Self::DelayLaunch => "delay_launch",
            Self::FallbackCpu => "fallback_cpu",
        }
    }
}

impl Default for BandwidthControl {
    fn default() -> Self {
        Self {
            token: true,
            heavy_operations: HeavyOperations::default(),
            interval: Duration::from_millis(10),
            window: 50,
            throttle_threshold: 0.85,
            throttle_action: ThrottleAction::default(),
        }
    }
}

impl BandwidthControl {
    /// Operations that hold the bandwidth token; `None` where nobody does.
    pub fn heavy(&self) -> Option<HeavyOperations> {
        self.token.then_some(self.heavy_operations)
    }

    /// How a [`Monitor`](crate::bandwidth::Monitor) is to look, where the memory lets so much through.
    pub fn monitor(&self, capacity: Option<Capacity>) -> MonitorParams {
        MonitorParams {
            interval: self.interval,
            window: self.window,
            capacity,
            contention_threshold: self.throttle_threshold,
        }
    }
}

pub(in crate::partition) fn read(section: &Section<'_>) -> Result<BandwidthControl> {
    section.only(&[
        "enable_token_semaphore",
        "heavy_operations",
        "monitoring_interval_ms",
        "bandwidth_window_size",
        "throttle_threshold",
        "throttle_action",
    ])?;
    let usual = BandwidthControl::default();
    let milliseconds = section.count("monitoring_interval_ms", 1..=10_000)?;
    let interval = milliseconds.map(|ms| Duration::from_millis(ms as u64));
    let actions = ThrottleAction::ALL.map(|action| (action.name(), action));
    Ok(BandwidthControl {
        token: section.flag("enable_token_semaphore")?.unwrap_or(usual.token),
        heavy_operations: heavy(section)?.unwrap_or(usual.heavy_operations),
        interval: interval.unwrap_or(usual.interval),
        window: section.count("bandwidth_window_size", 1..=100_000)?.unwrap_or(usual.window),
        throttle_threshold: section
            .number("throttle_threshold", 0.05..=1.0)?
            .unwrap_or(usual.throttle_threshold),
        throttle_action: section
            .one_of("throttle_action", &actions)?
            .unwrap_or(usual.throttle_action),
    })
}

fn heavy(section: &Section<'_>) -> Result<Option<HeavyOperations>> {
    let Some(entry) = section.get("heavy_operations") else { return Ok(None) };
    let mut names = Vec::new();
    for item in section.items(entry)? {
        let name = if let Value::Text(name) = &item.value { name } else { "" };
        if let Err(error) = HeavyOperations::named([name]) {
            let message = error.to_string();
            let expected = message.strip_prefix("heavy_operations: expected ");
            let expected = expected.and_then(|rest| rest.split(", found").next());
            return Err(section.invalid_item(entry, item, expected.unwrap_or_default()));
        }
        names.push(name);
    }
    Ok(HeavyOperations::named(names).ok())
}
