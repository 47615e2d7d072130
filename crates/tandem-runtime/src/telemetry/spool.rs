//! Records on their way to files, as bytes: to make text of them takes ten times as long, so that is done when there is time.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tandem_formats::{FormatError, folder_of};

use super::event::{Activity, Event, Gauge, Level, Record, Task};
use crate::device::Device;
use crate::profile::Operation;

/// Bytes of records that are handed to the file together.
const CHUNK: usize = 1 << 16;

/// Records, first in, first out: the newest in memory, the rest in a file without a name, which is gone with the program.
pub(super) struct Spool {
    file: File,
    /// What errors name: the folder of the file.
    folder: PathBuf,
    /// Lengths of the chunks in the file that have not been taken out, each of whole records.
    chunks: VecDeque<usize>,
    /// Where in the file the first of them begins, and the last ends.
    begin: u64,
    end: u64,
    /// Records that the file does not have.
    newest: Vec<u8>,
}

impl Spool {
    /// An empty one, with its file in the folder of `beside`.
    pub(super) fn create(beside: &Path) -> Result<Self, FormatError> {
        let folder = folder_of(beside).to_owned();
        let file = tempfile::tempfile_in(&folder)
            .map_err(|error| FormatError::io(&folder, "cannot create a file in", error))?;
        let (chunks, newest) = (VecDeque::new(), Vec::with_capacity(CHUNK));
        Ok(Self { file, folder, chunks, begin: 0, end: 0, newest })
    }

    /// Puts a record in.
    pub(super) fn push(&mut self, record: &Record) -> Result<(), FormatError> {
        encode(record, &mut self.newest);
        if self.newest.len() < CHUNK {
            return Ok(());
        }
        let written = self.file.write_all_at(&self.newest, self.end);
        written
            .map_err(|error| FormatError::io(&self.folder, "cannot write to a file in", error))?;
        self.end += self.newest.len() as u64;
        self.chunks.push_back(self.newest.len());
        self.newest.clear();
        Ok(())
    }

    /// Takes the oldest records out, some thousand of them; none where there are none.
    pub(super) fn pop(&mut self) -> Result<Vec<Record>, FormatError> {
        let failed = |error| FormatError::io(&self.folder, "cannot read a file in", error);
        let Some(length) = self.chunks.pop_front() else {
            let records = decode(&self.newest).ok_or_else(|| failed(damaged()))?;
            self.newest.clear();
            return Ok(records);
        };
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.begin).map_err(failed)?;
        self.begin += length as u64;
        let records = decode(&bytes).ok_or_else(|| failed(damaged()))?;
        if self.chunks.is_empty() {
            // The file gives its room on the disk back.
            self.file.set_len(0).map_err(failed)?;
            (self.begin, self.end) = (0, 0);
        }
        Ok(records)
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it does not hold what was written to it")
}

/// What begins a record.
const EVENT: u8 = 0;
const FAILED_EVENT: u8 = 1;
const LEVEL: u8 = 2;

fn encode(record: &Record, to: &mut Vec<u8>) {
    match record {
        Record::Event(event) => {
            let Event { activity, task, start, duration, bytes, failure } = event;
            let kind = if failure.is_some() { FAILED_EVENT } else { EVENT };
            to.extend([kind, *activity as u8, task.operation as u8, task.device as u8]);
            to.extend([u8::from(task.layer.is_some())]);
            to.extend(task.layer.unwrap_or_default().to_le_bytes());
            to.extend(task.worker.to_le_bytes());
            for number in [task.packet, *start, *duration, *bytes] {
                to.extend(number.to_le_bytes());
            }
            if let Some(failure) = failure {
                to.extend((failure.len() as u64).to_le_bytes());
                to.extend(failure.as_bytes());
            }
        }
        Record::Level(Level { gauge, at, value }) => {
            to.extend([LEVEL, *gauge as u8]);
            to.extend(at.to_le_bytes());
            to.extend(value.to_le_bytes());
        }
    }
}

/// All records; none where the bytes are not what [`encode`] writes.
fn decode(mut bytes: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::with_capacity(bytes.len() / 32);
    while let Some((&kind, rest)) = bytes.split_first() {
        bytes = rest;
        records.push(match kind {
            EVENT | FAILED_EVENT => Record::Event(decode_event(&mut bytes, kind == FAILED_EVENT)?),
            LEVEL => Record::Level(Level {
                gauge: *Gauge::ALL.get(usize::from(byte(&mut bytes)?))?,
                at: number(&mut bytes)?,
                value: f64::from_bits(number(&mut bytes)?),
            }),
            _ => return None,
        });
    }
    Some(records)
}

fn decode_event(bytes: &mut &[u8], failed: bool) -> Option<Event> {
    let activity = *Activity::ALL.get(usize::from(byte(bytes)?))?;
    let operation = *Operation::ALL.get(usize::from(byte(bytes)?))?;
    let device = *Device::ALL.get(usize::from(byte(bytes)?))?;
    let has_layer = byte(bytes)? != 0;
    let layer = u16::from_le_bytes(array(bytes)?);
    let worker = u16::from_le_bytes(array(bytes)?);
    let layer = has_layer.then_some(layer);
    let task = Task { operation, layer, device, worker, packet: number(bytes)? };
    let [start, duration, moved] = [number(bytes)?, number(bytes)?, number(bytes)?];
    let failure = if failed { Some(text(bytes)?) } else { None };
    Some(Event { activity, task, start, duration, bytes: moved, failure })
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    array(bytes).map(|[byte]| byte)
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    array(bytes).map(u64::from_le_bytes)
}

fn text(bytes: &mut &[u8]) -> Option<Box<str>> {
    let length = usize::try_from(number(bytes)?).ok()?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    std::str::from_utf8(text).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let task = (
            prop::sample::select(Operation::ALL.to_vec()),
            any::<Option<u16>>(),
            prop::sample::select(Device::ALL.to_vec()),
            any::<u16>(),
            any::<u64>(),
        )
            .prop_map(|(operation, layer, device, worker, packet)| Task {
                operation,
                layer,
                device,
                worker,
                packet,
            });
        let event = (
            prop::sample::select(Activity::ALL.to_vec()),
            task,
            any::<[u64; 3]>(),
            any::<Option<String>>(),
        )
            .prop_map(|(activity, task, [start, duration, bytes], failure)| {
                let failure = failure.map(String::into_boxed_str);
                Record::Event(Event { activity, task, start, duration, bytes, failure })
            });
        let level = (prop::sample::select(Gauge::ALL.to_vec()), any::<u64>(), any::<i32>())
            .prop_map(|(gauge, at, value)| {
                Record::Level(Level { gauge, at, value: f64::from(value) / 7.0 })
            });
        prop_oneof![4 => event, 1 => level]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn records_come_out_as_they_went_in(
            few in prop::collection::vec(any_record(), 0..40),
            // How often they go in, and how often something is taken out after that.
            times in prop::collection::vec((1..150_usize, 0..4_usize), 1..5),
        ) {
            let folder = tempfile::TempDir::new().unwrap();
            let mut spool = Spool::create(&folder.path().join("rows.csv")).unwrap();
            let (mut expected, mut found) = (Vec::new(), Vec::new());
            for (pushes, pops) in times {
                for record in few.iter().cycle().take(pushes * few.len()) {
                    spool.push(record).unwrap();
                    expected.push(record.clone());
                }
                for _ in 0..pops {
                    found.extend(spool.pop().unwrap());
                }
            }
            loop {
                let records = spool.pop().unwrap();
                if records.is_empty() {
                    break;
                }
                found.extend(records);
            }
            prop_assert!(found == expected);
            prop_assert_eq!(spool.file.metadata().unwrap().len(), 0);
        }

        #[test]
        fn damaged_bytes_are_no_records_or_some(
            records in prop::collection::vec(any_record(), 1..4),
            place in any::<prop::sample::Index>(),
            value in any::<u8>(),
        ) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| encode(record, &mut bytes));
            let place = place.index(bytes.len());
            let _ = decode(&bytes[..place]);
            bytes[place] = value;
            let _ = decode(&bytes);
        }
    }
}
