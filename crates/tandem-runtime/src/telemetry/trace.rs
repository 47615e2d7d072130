//! A trace that <https://ui.perfetto.dev> shows, in Chrome's trace event format (JSON).
//!
//! Each worker of a device is a track of slices; its waits for the bandwidth token, and its holds, are a second one. Each
//! gauge is a counter track. The format: "Trace Event Format", Google, 2016.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tandem_formats::{AtomicFile, FormatError};

use super::event::{Activity, Event, Level, Record};
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
enum Entry<'a> {
    /// Names a track, or places it.
    #[serde(rename = "M")]
    Metadata { name: &'static str, pid: u32, tid: usize, args: TrackArgs },
    /// A stretch of time.
    #[serde(rename = "X")]
    Slice {
        name: &'static str,
        cat: &'static str,
        pid: u32,
        tid: usize,
        ts: f64,
        dur: f64,
        args: SliceArgs<'a>,
    },
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
struct SliceArgs<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<u16>,
    packet: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct CounterArgs {
    value: f64,
}

/// The file. It appears when it is complete.
pub(super) struct TraceFile {
    file: AtomicFile,
    /// The newest entry: many small writes to memory cost less than to a file.
    entry: Vec<u8>,
    tracks: BTreeMap<Track, usize>,
    /// Slices and values that may still be written.
    room: u64,
    left_out: u64,
    is_first: bool,
}

impl TraceFile {
    /// A trace of at most so many slices and values.
    pub(super) fn create(path: &Path, most: u64) -> Result<Self, FormatError> {
        let mut file = AtomicFile::create(path)?;
        file.append(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
        let mut trace = Self {
            file,
            entry: Vec::new(),
            tracks: BTreeMap::new(),
            room: most,
            left_out: 0,
            is_first: true,
        };
        let args = TrackArgs::Name { name: "Tandem".to_owned() };
        trace.append(&Entry::Metadata { name: "process_name", pid: PID, tid: 0, args })?;
        Ok(trace)
    }

    pub(super) fn write(&mut self, record: &Record) -> Result<(), FormatError> {
        if self.room == 0 {
            self.left_out += 1;
            return Ok(());
        }
        self.room -= 1;
        match record {
            Record::Event(event) => self.slice(event),
            Record::Level(Level { gauge, at, value }) => {
                let args = CounterArgs { value: *value };
                let (name, ts) = (gauge.name(), microseconds(*at));
                self.append(&Entry::Counter { name, pid: PID, ts, args })
            }
        }
    }

    /// Slices and values for which there was no room.
    pub(super) const fn left_out(&self) -> u64 {
        self.left_out
    }

    pub(super) fn finish(mut self) -> Result<(), FormatError> {
        self.file.append(b"\n]}\n")?;
        self.file.commit()
    }

    fn slice(&mut self, event: &Event) -> Result<(), FormatError> {
        let task = event.task;
        let of_token = event.activity != Activity::Compute;
        let tid = self.track(Track { of_token, device: task.device, worker: task.worker })?;
        let cat = match event.activity {
            Activity::Compute => "compute",
            Activity::TokenWait => "token wait",
            Activity::TokenHold => "token hold",
        };
        self.append(&Entry::Slice {
            name: if event.activity == Activity::TokenWait { cat } else { task.operation.name() },
            cat,
            pid: PID,
            tid,
            ts: microseconds(event.start),
            dur: microseconds(event.duration),
            args: SliceArgs {
                layer: task.layer,
                packet: task.packet,
                bytes: event.bytes,
                error: event.failure.as_deref(),
            },
        })
    }

    /// The number of a track, which is named and placed when it is first used.
    fn track(&mut self, track: Track) -> Result<usize, FormatError> {
        if let Some(&tid) = self.tracks.get(&track) {
            return Ok(tid);
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
            self.append(&Entry::Metadata { name, pid: PID, tid, args })?;
        }
        Ok(tid)
    }

    fn append(&mut self, entry: &Entry<'_>) -> Result<(), FormatError> {
        self.entry.clear();
        self.entry.extend(if self.is_first { &b"\n"[..] } else { b",\n" });
        self.is_first = false;
        let written = serde_json::to_writer(&mut self.entry, entry);
        written.map_err(|error| {
            FormatError::io(self.file.final_path(), "cannot write", error.into())
        })?;
        self.file.append(&self.entry)
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}
