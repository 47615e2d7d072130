//! A table of operations, one a row.

use std::path::Path;

use csv::{Writer, WriterBuilder};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tandem_formats::{AtomicFile, FormatError};

use super::durations::milliseconds;
use super::event::Event;
use crate::device::Device;

/// Names of the columns, which clients know. There is a header without rows, too.
const HEADER: &[u8] = b"timestamp,device,worker_instance,duration_ms,packet_id,layer_idx,operation,success,memory_used_mb,\
    error_message\n";

/// A row, its fields in the order of the columns. `docs/telemetry.md` defines them.
#[derive(Serialize)]
struct Row<'a> {
    timestamp: String,
    device: Device,
    worker_instance: u16,
    duration_ms: f64,
    packet_id: u64,
    layer_idx: Option<u16>,
    operation: &'static str,
    success: bool,
    memory_used_mb: f64,
    error_message: Option<&'a str>,
}

/// The file. It appears when it is complete.
pub(super) struct CsvFile(Writer<AtomicFile>);

impl CsvFile {
    pub(super) fn create(path: &Path) -> Result<Self, FormatError> {
        let mut file = AtomicFile::create(path)?;
        file.append(HEADER)?;
        Ok(Self(WriterBuilder::new().has_headers(false).from_writer(file)))
    }

    /// Writes an operation that has run; `started` is when the recorder was made.
    pub(super) fn write(&mut self, started: Timestamp, event: &Event) -> Result<(), FormatError> {
        let row = Row {
            timestamp: at(started, event.start).to_string(),
            device: event.task.device,
            worker_instance: event.task.worker,
            duration_ms: milliseconds(event.duration),
            packet_id: event.task.packet,
            layer_idx: event.task.layer,
            operation: event.task.operation.name(),
            success: event.failure.is_none(),
            memory_used_mb: event.bytes as f64 / 1e6,
            error_message: event.failure.as_deref(),
        };
        let written = self.0.serialize(row);
        written.map_err(|error| cannot_write(self.0.get_ref().final_path(), error.into()))
    }

    pub(super) fn finish(self) -> Result<(), FormatError> {
        let path = self.0.get_ref().final_path().to_owned();
        let file = self.0.into_inner();
        file.map_err(|error| cannot_write(&path, error.into_error()))?.commit()
    }
}

/// The time so many nanoseconds later.
fn at(started: Timestamp, nanoseconds: u64) -> Timestamp {
    let later = i64::try_from(nanoseconds).map(SignedDuration::from_nanos);
    later.ok().and_then(|later| started.checked_add(later).ok()).unwrap_or(Timestamp::MAX)
}

fn cannot_write(path: &Path, source: std::io::Error) -> FormatError {
    FormatError::io(path, "cannot write", source)
}
