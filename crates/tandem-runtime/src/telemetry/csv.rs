//! A table of operations, one a row.

use std::path::Path;

use csv::{Writer, WriterBuilder};
use jiff::{SignedDuration, Timestamp};
use tandem_formats::{AtomicFile, FormatError};

use super::decimal::{push_fraction, push_padded, push_whole};
use super::event::Event;

/// Names of the columns, which clients know. There is a header without rows, too.
const HEADER: &[u8] = b"timestamp,device,worker_instance,duration_ms,packet_id,layer_idx,operation,success,memory_used_mb,\
    error_message\n";

/// The file. It appears when it is complete.
pub(super) struct CsvFile {
    rows: Writer<AtomicFile>,
    /// The newest field that is made.
    field: Vec<u8>,
    /// The newest second, and its text up to the fraction.
    second: Option<(i64, String)>,
}

impl CsvFile {
    pub(super) fn create(path: &Path) -> Result<Self, FormatError> {
        let mut file = AtomicFile::create(path)?;
        file.append(HEADER)?;
        let rows = WriterBuilder::new().has_headers(false).from_writer(file);
        Ok(Self { rows, field: Vec::new(), second: None })
    }

    /// Writes an operation that has run, in the order of the columns, which `docs/telemetry.md` defines; `started` is when
    /// the recorder was made.
    pub(super) fn write(&mut self, started: Timestamp, event: &Event) -> Result<(), FormatError> {
        let written = self.fields(started, event);
        written.map_err(|error| cannot_write(self.rows.get_ref().final_path(), error.into()))
    }

    fn fields(&mut self, started: Timestamp, event: &Event) -> csv::Result<()> {
        let task = event.task;
        self.timestamp(at(started, event.start))?;
        self.rows.write_field(task.device.name())?;
        self.made(|field| push_whole(field, task.worker.into()))?;
        // Milliseconds, of nanoseconds.
        self.made(|field| push_fraction(field, event.duration, 6))?;
        self.made(|field| push_whole(field, task.packet))?;
        self.made(|field| {
            if let Some(layer) = task.layer {
                push_whole(field, layer.into());
            }
        })?;
        self.rows.write_field(task.operation.name())?;
        self.rows.write_field(if event.failure.is_none() { "true" } else { "false" })?;
        // MB, of bytes.
        self.made(|field| push_fraction(field, event.bytes, 6))?;
        self.rows.write_field(event.failure.as_deref().unwrap_or_default())?;
        self.rows.write_record(None::<&[u8]>)
    }

    fn timestamp(&mut self, at: Timestamp) -> csv::Result<()> {
        let second = at.as_second();
        let prefix = match &self.second {
            Some((newest, prefix)) if *newest == second => prefix,
            _ => {
                let text = Timestamp::from_second(second).unwrap_or(at).to_string();
                &self.second.insert((second, text.trim_end_matches('Z').to_owned())).1
            }
        };
        self.field.clear();
        self.field.extend_from_slice(prefix.as_bytes());
        self.field.push(b'.');
        push_padded(&mut self.field, at.subsec_nanosecond().unsigned_abs().into(), 9);
        self.field.push(b'Z');
        self.rows.write_field(&self.field)
    }

    fn made(&mut self, make: impl FnOnce(&mut Vec<u8>)) -> csv::Result<()> {
        self.field.clear();
        make(&mut self.field);
        self.rows.write_field(&self.field)
    }

    pub(super) fn finish(self) -> Result<(), FormatError> {
        let path = self.rows.get_ref().final_path().to_owned();
        let file = self.rows.into_inner();
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
