//! A trace that <https://ui.perfetto.dev> shows, in Chrome's trace event format (JSON).
//!
//! Each worker of a device is a track of slices; its waits for the bandwidth token, and its holds, are a second one. Each
//! gauge is a counter track. The format: "Trace Event Format", Google, 2016.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tandem_formats::{AtomicFile, FormatError};

use super::event::{Activity, Event, Level, Record};
use super::text::{push_fraction, push_whole, spill};
use crate::device::Device;

/// The one process of a trace.
const PID: u32 = 1;

/// Slices of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Track {
    of_token: bool,
    device: Device,
    worker: u16,
}

/// An entry of the trace. `ts` and `dur` are in microseconds.
#[derive(Serialize)]
#[serde(tag = "ph")]
enum Entry {
    /// Names a track, or places it.
    #[serde(rename = "M")]
    Metadata { name: &'static str, pid: u32, tid: usize, args: TrackArgs },
    /// A value from now on.
    #[serde(rename = "C")]
    Counter { name: &'static str, pid: u32, ts: f64, args: CounterArgs },
}

#[derive(Serialize)]
#[serde(untagged)]
enum TrackArgs {
    Name { name: String },
    Order { sort_index: usize },
}

#[derive(Serialize)]
struct CounterArgs {
    value: f64,
}

/// The file. It appears when it is complete.
pub(super) struct TraceFile {
    file: AtomicFile,
    trace: Trace,
    /// Slices and values that it may have.
    most: u64,
    /// Those that there were, and those that were written.
    offered: u64,
    written: u64,
}

impl TraceFile {
    /// A trace of at most so many slices and values: the first ones.
    pub(super) fn create(path: &Path, most: u64) -> Result<Self, FormatError> {
        let file = AtomicFile::create(path)?;
        Ok(Self { file, trace: Trace::new(), most, offered: 0, written: 0 })
    }

    /// Whether there is room for one more.
    pub(super) const fn admit(&mut self) -> bool {
        self.offered += 1;
        self.offered <= self.most
    }

    /// Writes what was admitted, and nothing of what comes after that.
    pub(super) fn write(&mut self, record: &Record) -> Result<(), FormatError> {
        if self.written == self.most {
            return Ok(());
        }
        self.written += 1;
        self.trace.write(record);
        spill(&mut self.trace.text, &mut self.file)
    }

    /// Slices and values for which there was no room.
    pub(super) const fn left_out(&self) -> u64 {
        self.offered.saturating_sub(self.most)
    }

    pub(super) fn finish(mut self) -> Result<(), FormatError> {
        self.file.append(&self.trace.into_text())?;
        self.file.commit()
    }
}

/// The text of a trace.
pub(super) struct Trace {
    text: Vec<u8>,
    tracks: BTreeMap<Track, usize>,
    is_first: bool,
}

impl Trace {
    pub(super) fn new() -> Self {
        let text = b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[".to_vec();
        let mut trace = Self { text, tracks: BTreeMap::new(), is_first: true };
        let args = TrackArgs::Name { name: "Tandem".to_owned() };
        trace.append(&Entry::Metadata { name: "process_name", pid: PID, tid: 0, args });
        trace
    }

    /// What is left of it, and its end.
    pub(super) fn into_text(mut self) -> Vec<u8> {
        self.text.extend_from_slice(b"\n]}\n");
        self.text
    }

    pub(super) fn write(&mut self, record: &Record) {
        match record {
            Record::Event(event) => self.slice(event),
            Record::Level(Level { gauge, at, value }) => {
                let args = CounterArgs { value: *value };
                let (name, ts) = (gauge.name(), microseconds(*at));
                self.append(&Entry::Counter { name, pid: PID, ts, args });
            }
        }
    }

    fn slice(&mut self, event: &Event) {
        let task = event.task;
        let of_token = event.activity != Activity::Compute;
        let tid = self.track(Track { of_token, device: task.device, worker: task.worker });
        let cat = match event.activity {
            Activity::Compute => "compute",
            Activity::TokenWait => "token wait",
            Activity::TokenHold => "token hold",
        };
        let name = if event.activity == Activity::TokenWait { cat } else { task.operation.name() };
        self.separate();
        // A stretch of time. Names have nothing that JSON would have otherwise; times are microseconds, of nanoseconds.
        let text = &mut self.text;
        text.extend_from_slice(b"{\"ph\":\"X\",\"name\":\"");
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b"\",\"cat\":\"");
        text.extend_from_slice(cat.as_bytes());
        text.extend_from_slice(b"\",\"pid\":");
        push_whole(text, PID.into());
        text.extend_from_slice(b",\"tid\":");
        push_whole(text, tid as u64);
        text.extend_from_slice(b",\"ts\":");
        push_fraction::<3>(text, event.start);
        text.extend_from_slice(b",\"dur\":");
        push_fraction::<3>(text, event.duration);
        text.extend_from_slice(b",\"args\":{");
        if let Some(layer) = task.layer {
            text.extend_from_slice(b"\"layer\":");
            push_whole(text, layer.into());
            text.push(b',');
        }
        text.extend_from_slice(b"\"packet\":");
        push_whole(text, task.packet);
        text.extend_from_slice(b",\"bytes\":");
        push_whole(text, event.bytes);
        if let Some(error) = event.failure.as_deref() {
            text.extend_from_slice(b",\"error\":");
            to_json(text, &error);
        }
        text.extend_from_slice(b"}}");
    }

    /// The number of a track, which is named and placed when it is first used.
    fn track(&mut self, track: Track) -> usize {
        if let Some(&tid) = self.tracks.get(&track) {
            return tid;
        }
        let tid = self.tracks.len() + 1;
        self.tracks.insert(track, tid);
        let Track { of_token, device, worker } = track;
        let of = if of_token { "token: " } else { "" };
        let name = format!("{of}{} {worker}", device.name());
        // Devices above the token, the CPU above the iGPU.
        let group = 2 * usize::from(of_token) + device as usize;
        let sort_index = (group << u16::BITS) + usize::from(worker);
        for (name, args) in [
            ("thread_name", TrackArgs::Name { name }),
            ("thread_sort_index", TrackArgs::Order { sort_index }),
        ] {
            self.append(&Entry::Metadata { name, pid: PID, tid, args });
        }
        tid
    }

    fn append(&mut self, entry: &Entry) {
        self.separate();
        to_json(&mut self.text, entry);
    }

    fn separate(&mut self) {
        self.text.extend_from_slice(if self.is_first { b"\n" } else { b",\n" });
        self.is_first = false;
    }
}

fn to_json(text: &mut Vec<u8>, value: &impl Serialize) {
    // Keys are text, and memory takes whatever is written to it.
    serde_json::to_writer(text, value).expect("entries have a form in JSON");
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}
