//! What records add up to.

use super::busy::{BusyTime, GAP};
use super::durations::Durations;
use super::event::{Activity, Event, Gauge, Level, Record};
use crate::device::Device;
use crate::profile::Operation;

/// Sums over all records that were read.
#[derive(Debug)]
pub(super) struct Totals {
    /// In the order of [`Operation::ALL`] and [`Device::ALL`]; none of what has not run.
    operations: [[Option<OperationTotal>; Device::ALL.len()]; Operation::ALL.len()],
    /// Nanoseconds of each layer up to the last that has run, in the order of [`Device::ALL`].
    layers: Vec<Option<[u64; Device::ALL.len()]>>,
    /// In the order of [`Device::ALL`].
    busy: [BusyTime; Device::ALL.len()],
    /// Of either device: the union of `busy`, without gaps of its own. So the time of both is the sum less this.
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

impl Default for Totals {
    fn default() -> Self {
        Self {
            operations: Default::default(),
            layers: Vec::new(),
            busy: Device::ALL.map(|_| BusyTime::with_gap(GAP)),
            busy_any: BusyTime::with_gap(0),
            queue: QueueTotal::default(),
        }
    }
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
        Operation::ALL.into_iter().zip(&self.operations).flat_map(|(operation, totals)| {
            let each = Device::ALL.into_iter().zip(totals);
            each.filter_map(move |(device, total)| Some((operation, device, total.as_ref()?)))
        })
    }

    /// Layers whose operations have run, with nanoseconds in the order of [`Device::ALL`].
    pub(super) fn layers(&self) -> impl Iterator<Item = (u16, [u64; Device::ALL.len()])> {
        (0..).zip(&self.layers).filter_map(|(layer, &times)| Some((layer, times?)))
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
        let total = &mut self.operations[event.task.operation as usize][device as usize];
        let total = total.get_or_insert_default();
        total.durations.add(event.duration);
        total.failed += u64::from(event.failure.is_some());
        total.bytes += event.bytes;
        if let Some(layer) = event.task.layer {
            let layer = usize::from(layer);
            if self.layers.len() <= layer {
                self.layers.resize(layer + 1, None);
            }
            self.layers[layer].get_or_insert_default()[device as usize] += event.duration;
        }
        if let Some((start, end)) = self.busy[device as usize].add(event.start, event.end()) {
            self.busy_any.add(start, end);
        }
    }
}

impl QueueTotal {
    fn area_until(&self, at: u64) -> f64 {
        let since = self.last.map_or(0.0, |(last, depth)| at.saturating_sub(last) as f64 * depth);
        self.area + since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Task;

    /// Operations of both devices, as (device, start, end) in nanoseconds.
    fn totals(of: &[(Device, u64, u64)]) -> Totals {
        let mut totals = Totals::default();
        for &(device, start, end) in of {
            let task = Task::new(Operation::AttentionQkvProj, None, device);
            let (activity, duration) = (Activity::Compute, end - start);
            let event = Event { activity, task, start, duration, bytes: 0, failure: None };
            totals.add(&Record::Event(event));
        }
        totals
    }

    #[test]
    fn a_gap_between_devices_is_neither_s() {
        use Device::{Cpu, Igpu};
        // The gap of 500 ns between the CPU's operations is the CPU's; that before the iGPU's is nobody's.
        let taking_turns = [(Cpu, 0, 2000), (Cpu, 2500, 3000), (Igpu, 3400, 9000)];
        let totals = totals(&taking_turns);
        assert_eq!((totals.busy(Cpu), totals.busy(Igpu)), (3000, 5600));
        assert_eq!(totals.busy_any(), 8600);
    }

    #[test]
    fn a_gap_that_the_other_device_fills_is_both_s() {
        use Device::{Cpu, Igpu};
        let totals = totals(&[(Cpu, 0, 2000), (Igpu, 1900, 2600), (Cpu, 2500, 3000)]);
        assert_eq!(totals.busy(Cpu) + totals.busy(Igpu) - totals.busy_any(), 700);
    }
}
