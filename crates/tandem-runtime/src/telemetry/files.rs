//! The files that have every record: rows and a trace.

use std::path::Path;

use jiff::Timestamp;
use tandem_formats::FormatError;

use super::csv::CsvFile;
use super::event::{Activity, Record};
use super::spool::Spool;
use super::trace::TraceFile;

/// Records are taken out of the spool so often when there is time: some 20 thousand, for some milliseconds.
const AT_A_TIME: usize = 16;

/// Where records go. They are spooled as they come, and become text when there is time: while an executor works, its
/// threads want all cores and all of the memory's bandwidth.
pub(super) struct Files {
    /// None where there is no file.
    spool: Option<Spool>,
    csv: Option<CsvFile>,
    trace: Option<TraceFile>,
}

impl Files {
    /// Begins those that have a path: rows, whose times count from `started`, and a trace of at most so many slices and
    /// values.
    pub(super) fn create(
        csv: Option<&Path>,
        trace: Option<&Path>,
        started: Timestamp,
        trace_events: u64,
    ) -> Result<Self, FormatError> {
        let beside = csv.or(trace);
        Ok(Self {
            csv: csv.map(|path| CsvFile::create(path, started)).transpose()?,
            trace: trace.map(|path| TraceFile::create(path, trace_events)).transpose()?,
            // After the files, whose errors say more.
            spool: beside.map(Spool::create).transpose()?,
        })
    }

    /// Puts a record by for the files that want it.
    pub(super) fn keep(&mut self, record: &Record) -> Result<(), FormatError> {
        let for_trace = self.trace.as_mut().is_some_and(TraceFile::admit);
        let for_csv = self.csv.is_some() && is_row(record);
        match &mut self.spool {
            Some(spool) if for_trace || for_csv => spool.push(record),
            _ => Ok(()),
        }
    }

    /// Makes text of some of what was put by. Whether there was any.
    pub(super) fn write_some(&mut self) -> Result<bool, FormatError> {
        let Some(spool) = &mut self.spool else { return Ok(false) };
        for _ in 0..AT_A_TIME {
            let records = spool.pop()?;
            if records.is_empty() {
                return Ok(false);
            }
            for record in &records {
                if let (Some(csv), Record::Event(event)) = (&mut self.csv, record)
                    && is_row(record)
                {
                    csv.write(event)?;
                }
                self.trace.as_mut().map_or(Ok(()), |trace| trace.write(record))?;
            }
        }
        Ok(true)
    }

    /// Slices and values for which the trace had no room.
    pub(super) fn trace_events_left_out(&self) -> u64 {
        self.trace.as_ref().map_or(0, TraceFile::left_out)
    }

    /// Completes the files.
    pub(super) fn finish(mut self) -> Result<(), FormatError> {
        while self.write_some()? {}
        let csv = self.csv.map_or(Ok(()), CsvFile::finish);
        self.trace.map_or(Ok(()), TraceFile::finish).and(csv)
    }
}

/// Whether there is a row for it.
fn is_row(record: &Record) -> bool {
    matches!(record, Record::Event(event) if event.activity == Activity::Compute)
}
