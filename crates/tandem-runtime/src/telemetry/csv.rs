//! A table of operations, one a row.

use std::path::Path;

use csv::WriterBuilder;
use jiff::Timestamp;
use tandem_formats::{AtomicFile, FormatError};

use super::event::Event;
use super::text::{push_fraction, push_padded, push_whole, spill};

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// Names of the columns, which clients know. There is a header without rows, too.
const HEADER: &[u8] = b"timestamp,device,worker_instance,duration_ms,packet_id,layer_idx,operation,success,memory_used_mb,\
    error_message\n";

/// The file. It appears when it is complete.
pub(super) struct CsvFile {
    file: AtomicFile,
    /// Rows that the file does not have yet.
    rows: Vec<u8>,
    clock: Clock,
}

impl CsvFile {
    /// `started` is when the recorder was made.
    pub(super) fn create(path: &Path, started: Timestamp) -> Result<Self, FormatError> {
        let (file, rows) = (AtomicFile::create(path)?, HEADER.to_vec());
        // Before 1970 there is none.
        let started = u64::try_from(started.as_nanosecond()).unwrap_or(0);
        Ok(Self { file, rows, clock: Clock { started, second: None } })
    }

    /// Writes an operation that has run, in the order of the columns, which `docs/telemetry.md` defines.
    pub(super) fn write(&mut self, event: &Event) -> Result<(), FormatError> {
        // What is written here has nothing that would have to be quoted, but for the message.
        let (row, task) = (&mut self.rows, event.task);
        self.clock.push(row, event.start);
        push_field(row, |row| row.extend_from_slice(task.device.name().as_bytes()));
        push_field(row, |row| push_whole(row, task.worker.into()));
        // Milliseconds, of nanoseconds.
        push_field(row, |row| push_fraction::<6>(row, event.duration));
        push_field(row, |row| push_whole(row, task.packet));
        push_field(row, |row| {
            task.layer.into_iter().for_each(|layer| push_whole(row, layer.into()))
        });
        push_field(row, |row| row.extend_from_slice(task.operation.name().as_bytes()));
        let success: &[u8] = if event.failure.is_none() { b"true" } else { b"false" };
        push_field(row, |row| row.extend_from_slice(success));
        // MB, of bytes.
        push_field(row, |row| push_fraction::<6>(row, event.bytes));
        push_field(row, |row| event.failure.iter().for_each(|message| push_quoted(row, message)));
        row.push(b'\n');
        spill(&mut self.rows, &mut self.file)
    }

    pub(super) fn finish(mut self) -> Result<(), FormatError> {
        self.file.append(&self.rows)?;
        self.file.commit()
    }
}

/// Tells the time of what happened so many nanoseconds after the beginning.
struct Clock {
    /// The beginning, in nanoseconds since 1970.
    started: u64,
    /// The newest second since 1970, and its text up to the fraction.
    second: Option<(u64, String)>,
}

impl Clock {
    fn push(&mut self, row: &mut Vec<u8>, nanoseconds: u64) {
        let at = self.started.saturating_add(nanoseconds);
        let second = at / SECOND;
        let prefix = match &self.second {
            Some((newest, prefix)) if *newest == second => prefix,
            _ => {
                let text = Timestamp::from_second(second.cast_signed()).unwrap_or(Timestamp::MAX);
                let text = text.to_string().trim_end_matches('Z').to_owned();
                &self.second.insert((second, text)).1
            }
        };
        row.extend_from_slice(prefix.as_bytes());
        row.push(b'.');
        push_padded::<9>(row, at % SECOND);
        row.push(b'Z');
    }
}

fn push_field(row: &mut Vec<u8>, push: impl FnOnce(&mut Vec<u8>)) {
    row.push(b',');
    push(row);
}

/// Text of somebody else's, in quotes where it needs them.
fn push_quoted(row: &mut Vec<u8>, text: &str) {
    let mut record = WriterBuilder::new().from_writer(&mut *row);
    let written = record.write_record([text]).and_then(|()| Ok(record.flush()?));
    written.expect("memory takes whatever is written to it");
    drop(record);
    // Only the end of a record closes its quotes; this one goes on.
    row.pop();
}
