//! Reading a trace (Chrome's trace event format), an entry at a time: traces have hundreds of megabytes.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use tandem_formats::{FormatError, InputFile, Result};

use crate::last_pass::{Newest, Slice};

/// Tracks, at most: workers of devices.
const MOST_TRACKS: usize = 100_000;

/// What is read of an entry. Slices have a length, names of tracks arguments. `ts` and `dur` are in microseconds.
#[derive(Deserialize)]
struct Entry {
    ph: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    cat: String,
    #[serde(default)]
    tid: u64,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    layer: Option<u16>,
    name: Option<String>,
}

/// What has been read so far.
#[derive(Default)]
struct Trace {
    newest: Newest,
    /// The device of each track.
    tracks: HashMap<u64, String>,
}

impl Trace {
    fn add(&mut self, entry: Entry) -> std::result::Result<(), String> {
        match entry.ph.as_str() {
            "M" if entry.name == "thread_name" && self.tracks.len() < MOST_TRACKS => {
                // `cpu 0` is worker 0 of the CPU.
                let name = entry.args.name.unwrap_or_default();
                let device = name.split(' ').next().unwrap_or_default().to_owned();
                self.tracks.insert(entry.tid, device);
                Ok(())
            }
            "X" if entry.cat == "compute" => {
                let device = self.tracks.get(&entry.tid).cloned();
                let device = device.ok_or_else(|| format!("track {} without a name", entry.tid))?;
                self.newest.add(Slice {
                    operation: entry.name,
                    layer: entry.args.layer,
                    device,
                    start_ms: entry.ts / 1e3,
                    duration_ms: entry.dur / 1e3,
                })
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<Newest> {
    InputFile::open(path)?; // a regular file, which opening does not wait for
    let file = File::open(path).map_err(|e| FormatError::io(path, "cannot open", e))?;
    let mut trace = Trace::default();
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(file));
    let read = json.deserialize_map(WholeFile(&mut trace)).and_then(|()| json.end());
    read.map_err(|e| {
        FormatError::invalid(path, "content", "a trace of a telemetry session (JSON)", e)
    })?;
    Ok(trace.newest)
}

/// The object that a trace is.
struct WholeFile<'a>(&'a mut Trace);

impl<'de> Visitor<'de> for WholeFile<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `traceEvents`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "traceEvents" {
                map.next_value_seed(Entries(self.0))?;
                found = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if found { Ok(()) } else { Err(A::Error::missing_field("traceEvents")) }
    }
}

/// Its entries.
struct Entries<'a>(&'a mut Trace);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of trace events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> std::result::Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Entry>()? {
            self.0.add(entry).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
