//! The last pass through the model that a trace, or a table of operations, has.

use std::collections::VecDeque;
use std::path::Path;

use tandem_formats::{FormatError, Result};

use crate::session::shown;
use crate::{rows, trace};

/// The operation that a pass ends with.
const LAST_OPERATION: &str = "lm_head";

/// The newest slices that are kept while a file is read. A pass of a model with 32 layers has some 450, and twice that
/// when both devices share its operations.
const KEPT: usize = 20_000;

/// An operation that ran. Times are in milliseconds since some moment that all slices share.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Its name.
    pub operation: String,
    /// Its layer, where it belongs to one.
    pub layer: Option<u16>,
    /// `cpu` or `igpu`.
    pub device: String,
    /// Beginning.
    pub start_ms: f64,
    /// Length.
    pub duration_ms: f64,
}

impl Slice {
    /// End.
    pub fn end_ms(&self) -> f64 {
        self.start_ms + self.duration_ms
    }
}

/// Operations of the last pass, in the order in which they began. Times are since its beginning.
#[derive(Clone, Debug, PartialEq)]
pub struct LastPass {
    /// The operations; at least one.
    pub slices: Vec<Slice>,
    /// Whether it is a whole pass: its last operation is there. Otherwise these are the newest operations of the file.
    pub is_whole: bool,
}

/// The newest slices of what has been read so far.
#[derive(Default)]
pub(crate) struct Newest(VecDeque<Slice>);

impl Newest {
    /// Adds a slice.
    ///
    /// # Errors
    /// When its times cannot be, and which one.
    pub(crate) fn add(&mut self, slice: Slice) -> std::result::Result<(), String> {
        if !(0.0..1e15).contains(&slice.duration_ms) || !(-1e15..1e15).contains(&slice.start_ms) {
            let Slice { operation, start_ms, duration_ms, .. } = slice;
            return Err(format!("{} at {start_ms} ms for {duration_ms} ms", shown(&operation)));
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(slice);
        Ok(())
    }
}

impl LastPass {
    /// Reads a trace (JSON), or a table of operations where the file's name ends in `.csv`.
    ///
    /// # Errors
    /// When the file cannot be read, is neither, or has no operation.
    pub fn read(path: &Path) -> Result<Self> {
        let is_table = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv"));
        let newest = if is_table { rows::read(path)? } else { trace::read(path)? };
        Self::of(newest).ok_or_else(|| {
            FormatError::invalid(path, "operations", "at least one that ran", "none")
        })
    }

    fn of(newest: Newest) -> Option<Self> {
        let mut slices = Vec::from(newest.0);
        slices.sort_by(|a, b| a.start_ms.total_cmp(&b.start_ms));
        let is_last = |slice: &Slice| slice.operation == LAST_OPERATION;
        let end = slices.iter().rposition(is_last);
        if let Some(end) = end {
            slices.truncate(end + 1);
            // With both devices at it there are several of the last operation, one after the other.
            let of_pass = slices.iter().rposition(|slice| !is_last(slice)).unwrap_or(0);
            let before = slices[..of_pass].iter().rposition(is_last);
            slices.drain(..before.map_or(0, |before| before + 1));
        }
        let begin = slices.first()?.start_ms;
        for slice in &mut slices {
            slice.start_ms -= begin;
            slice.operation = shown(&slice.operation);
            slice.device = shown(&slice.device);
        }
        Some(Self { slices, is_whole: end.is_some() })
    }

    /// How long it took.
    pub fn duration_ms(&self) -> f64 {
        self.slices.iter().map(Slice::end_ms).fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(slices: &[(&str, f64, f64)]) -> Option<LastPass> {
        let mut newest = Newest::default();
        for &(operation, start_ms, duration_ms) in slices {
            let (operation, device) = (operation.to_owned(), "cpu".to_owned());
            newest.add(Slice { operation, layer: None, device, start_ms, duration_ms }).unwrap();
        }
        LastPass::of(newest)
    }

    #[test]
    fn is_what_follows_the_last_but_one_end() {
        let found = pass(&[
            ("embedding", 0.0, 1.0),
            ("lm_head", 1.0, 1.0),
            ("lm_head", 1.1, 1.0),
            ("embedding", 10.0, 1.0),
            ("attention_compute", 11.0, 1.0),
            ("lm_head", 12.0, 1.0),
            ("lm_head", 12.5, 1.0),
            ("embedding", 20.0, 1.0),
        ]);
        let found = found.unwrap();
        let names: Vec<&str> = found.slices.iter().map(|slice| slice.operation.as_str()).collect();
        assert_eq!(names, ["embedding", "attention_compute", "lm_head", "lm_head"]);
        assert_eq!((found.slices[0].start_ms, found.duration_ms()), (0.0, 3.5));
        assert!(found.is_whole);
    }

    #[test]
    fn without_an_end_it_is_what_there_is() {
        let found = pass(&[("embedding", 5.0, 1.0)]).unwrap();
        assert_eq!((found.slices.len(), found.is_whole), (1, false));
        assert_eq!(pass(&[]), None);
        assert_eq!(pass(&[("lm_head", 0.0, 1.0)]).unwrap().slices.len(), 1);
    }
}
