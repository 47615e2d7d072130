//! What one pass did, moment by moment.

use serde::Serialize;

use super::durations::milliseconds;
use super::event::{Activity, Event, Record};
use crate::device::Device;

/// What a pass or a work packet did, in the order in which it began.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timeline {
    /// The number of the pass or packet.
    pub packet: u64,
    /// When it began, since the session did.
    pub start_ms: f64,
    /// From its first beginning to its last end.
    pub duration_ms: f64,
    /// What happened.
    pub events: Vec<TimelineEvent>,
}

/// A stretch of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimelineEvent {
    /// What happened.
    pub activity: Activity,
    /// The operation.
    pub operation: &'static str,
    /// Its layer; none for what a token meets once.
    pub layer: Option<u16>,
    /// Where it ran.
    pub device: Device,
    /// Which of the device's workers ran it.
    pub worker: u16,
    /// When it began, since the first event did.
    pub start_ms: f64,
    /// How long it took.
    pub duration_ms: f64,
    /// Bytes that were read and written.
    pub bytes: u64,
    /// Why it failed, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Timeline {
    /// Of those records that are of that pass or packet.
    pub(super) fn new<'a>(packet: u64, records: impl Iterator<Item = &'a Record>) -> Self {
        let mut events: Vec<&Event> = records
            .filter_map(|record| match record {
                Record::Event(event) => Some(event),
                Record::Level(_) => None,
            })
            .filter(|event| event.task.packet == packet)
            .collect();
        events.sort_by_key(|event| event.start);
        let start = events.first().map_or(0, |event| event.start);
        let end = events.iter().map(|event| event.end()).max().unwrap_or(start);
        Self {
            packet,
            start_ms: milliseconds(start),
            duration_ms: milliseconds(end - start),
            events: events.into_iter().map(|event| TimelineEvent::new(event, start)).collect(),
        }
    }
}

impl TimelineEvent {
    fn new(event: &Event, start: u64) -> Self {
        let task = event.task;
        Self {
            activity: event.activity,
            operation: task.operation.name(),
            layer: task.layer,
            device: task.device,
            worker: task.worker,
            start_ms: milliseconds(event.start - start),
            duration_ms: milliseconds(event.duration),
            bytes: event.bytes,
            error: event.failure.as_deref().map(ToOwned::to_owned),
        }
    }
}
