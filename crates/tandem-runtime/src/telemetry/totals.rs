//! What records add up to.

use std::collections::BTreeMap;

use super::busy::BusyTime;
use super::durations::Durations;
use super::event::{Activity, Event, Gauge, Level, Record};
use crate::device::Device;
use crate::profile::Operation;

/// Sums over all records that were read.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// By place in [`Operation::ALL`], and device.
    operations: BTreeMap<(usize, Device), OperationTotal>,
    /// Nanoseconds by layer, in the order of [`Device::ALL`].
    layers: BTreeMap<u16, [u64; Device::ALL.len()]>,
    /// In the order of [`Device::ALL`].
    busy: [BusyTime; Device::ALL.len()],
    /// Of either device.
    busy_any: BusyTime,
    queue: QueueTotal,
}

/// Sums of one operation on one device.
#[derive(Debug, Default)]
pub(super) struct OperationTotal {
    pub(super) durations: Durations,
    pub(super) failed: u64,
    pub(super) bytes: u64,
}

/// The queue's depth, added up over time.
#[derive(Debug, Default)]
struct QueueTotal {
    /// When it last changed, and to what.
    last: Option<(u64, f64)>,
    /// Depth times nanoseconds.
    area: f64,
}

impl Totals {
    /// Adds a record.
    pub(super) fn add(&mut self, record: &Record) {
        match record {
            Record::Event(event) if event.activity == Activity::Compute => self.computed(event),
            Record::Level(Level { gauge: Gauge::QueueDepth, at, value }) => {
                self.queue.area = self.queue.area_until(*at);
                self.queue.last = Some((*at, *value));
            }
            // Waits and holds of the token are in its own metrics, bandwidth in the monitor's.
            Record::Event(_) | Record::Level(_) => {}
        }
    }

    /// Operations that have run, in the order in which a token meets them.
    pub(super) fn operations(&self) -> impl Iterator<Item = (Operation, Device, &OperationTotal)> {
        let each = self.operations.iter();
        each.map(|(&(operation, device), total)| (Operation::ALL[operation], device, total))
    }

    /// Layers whose operations have run, with nanoseconds in the order of [`Device::ALL`].
    pub(super) fn layers(&self) -> impl Iterator<Item = (u16, [u64; Device::ALL.len()])> {
        self.layers.iter().map(|(&layer, &times)| (layer, times))
    }

    /// Nanoseconds in which `device` ran something.
    pub(super) fn busy(&self, device: Device) -> u64 {
        self.busy[device as usize].total()
    }

    /// Nanoseconds in which at least one device ran something.
    pub(super) fn busy_any(&self) -> u64 {
        self.busy_any.total()
    }

    /// The queue's mean depth from the beginning (as an empty queue) to `now`; none where nothing was said of it.
    pub(super) fn mean_queue_depth(&self, now: u64) -> Option<f64> {
        self.queue.last.filter(|_| now > 0)?;
        Some(self.queue.area_until(now) / now as f64)
    }

    fn computed(&mut self, event: &Event) {
        let device = event.task.device;
        let key = (event.task.operation as usize, device);
        let total = self.operations.entry(key).or_default();
        total.durations.add(event.duration);
        total.failed += u64::from(event.failure.is_some());
        total.bytes += event.bytes;
        if let Some(layer) = event.task.layer {
            self.layers.entry(layer).or_default()[device as usize] += event.duration;
        }
        self.busy[device as usize].add(event.start, event.end());
        self.busy_any.add(event.start, event.end());
    }
}

impl QueueTotal {
    fn area_until(&self, at: u64) -> f64 {
        let since = self.last.map_or(0.0, |(last, depth)| at.saturating_sub(last) as f64 * depth);
        self.area + since
    }
}
