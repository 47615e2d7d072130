//! The one reader of the ring.

use std::collections::VecDeque;
use std::sync::Arc;

use tandem_formats::FormatError;

use super::event::Record;
use super::files::Files;
use super::recorder::Shared;
use super::totals::Totals;

/// Takes records out of the ring, adds them up, and writes them to files.
pub(super) struct Collector {
    shared: Arc<Shared>,
    totals: Totals,
    /// The newest records, so many at most.
    recent: VecDeque<Record>,
    most_recent: usize,
    files: Files,
    /// What first went wrong with a file. Nothing is written after it.
    failure: Option<FormatError>,
}

impl Collector {
    /// One that keeps so many of the newest records.
    pub(super) fn new(shared: Arc<Shared>, files: Files, most_recent: usize) -> Self {
        let recent = VecDeque::new();
        Self { shared, totals: Totals::default(), recent, most_recent, files, failure: None }
    }

    /// Takes what is in the ring, and makes text of what was taken earlier where nothing has happened since.
    pub(super) fn tick(&mut self) {
        if !self.collect() && self.failure.is_none() {
            self.failure = self.files.write_some().err();
        }
    }

    /// Takes what is in the ring: not more than it holds, so that it ends even where writers are as quick. Whether
    /// anything ran.
    pub(super) fn collect(&mut self) -> bool {
        let mut any = false;
        for _ in 0..self.shared.capacity() {
            let Some(record) = self.shared.pop() else { break };
            // Levels come from a monitor, whether anything runs or not.
            any |= matches!(record, Record::Event(_));
            self.totals.add(&record);
            if self.failure.is_none() {
                self.failure = self.files.keep(&record).err();
            }
            self.keep(record);
        }
        any
    }

    fn keep(&mut self, record: Record) {
        if self.most_recent == 0 {
            return;
        }
        if self.recent.len() >= self.most_recent {
            self.recent.pop_front();
        }
        self.recent.push_back(record);
    }

    /// The newest records, the oldest first.
    pub(super) fn recent(&self) -> impl Iterator<Item = &Record> {
        self.recent.iter()
    }

    /// Sums over what was collected.
    pub(super) const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Slices and values for which the trace had no room.
    pub(super) fn trace_events_left_out(&self) -> u64 {
        self.files.trace_events_left_out()
    }

    /// Completes the files.
    pub(super) fn finish(self) -> Result<(), FormatError> {
        match self.failure {
            Some(failure) => Err(failure),
            None => self.files.finish(),
        }
    }
}
