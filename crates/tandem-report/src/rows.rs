//! Reading a table of operations (CSV).

use std::fs::File;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use tandem_formats::{FormatError, InputFile, Result};

use crate::last_pass::{Newest, Slice};

/// What is read of a row.
#[derive(Deserialize)]
struct Row {
    timestamp: String,
    device: String,
    duration_ms: f64,
    layer_idx: Option<u16>,
    operation: String,
}

pub(crate) fn read(path: &Path) -> Result<Newest> {
    InputFile::open(path)?; // a regular file, which opening does not wait for
    let file = File::open(path).map_err(|e| FormatError::io(path, "cannot open", e))?;
    let mut reader = csv::Reader::from_reader(file);
    let mut newest = Newest::default();
    let mut first = None;
    for (n, row) in reader.deserialize().enumerate() {
        // The header is line 1.
        let field = format!("row {}", n + 2);
        let wrong = |found: String| {
            FormatError::invalid(path, &field, "an operation of a telemetry session", found)
        };
        let row: Row = row.map_err(|error| wrong(error.to_string()))?;
        let at: Timestamp = row.timestamp.parse().map_err(|e: jiff::Error| wrong(e.to_string()))?;
        let start_ms = at.duration_since(*first.get_or_insert(at)).as_secs_f64() * 1e3;
        let Row { device, duration_ms, layer_idx: layer, operation, .. } = row;
        newest.add(Slice { operation, layer, device, start_ms, duration_ms }).map_err(wrong)?;
    }
    Ok(newest)
}
