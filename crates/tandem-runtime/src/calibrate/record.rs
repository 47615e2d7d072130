//! Measurements as a file: made once for a machine, a device and a model.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::choice::{Choice, Choices, Rates, best_ratio, choose};
use super::file::{self, CalibrationError, Measured};
use super::identity::Identity;
use crate::plan::PassSize;

/// Of the file's form. Others are refused.
const VERSION: u32 = 1;

/// Bytes per second of both devices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRates {
    /// The CPU's reading, when the GPU does nothing.
    pub cpu_alone: f64,
    /// The GPU's reading, when the CPU does nothing.
    pub igpu_alone: f64,
    /// The CPU's, while the GPU reads as well.
    pub cpu_together: f64,
    /// The GPU's, while the CPU reads as well.
    pub igpu_together: f64,
}

/// What was measured with passes of one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Tokens that went through the model together.
    pub tokens: usize,
    /// Tokens that were in the cache before.
    pub depth: usize,
    /// What each candidate reached.
    pub rates: Vec<Rates>,
}

/// All measurements of a machine, a device and a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    version: u32,
    /// What they depend on.
    pub identity: Identity,
    /// What memory allows.
    pub memory: MemoryRates,
    /// Seconds from handing the GPU a kernel that does next to nothing until the CPU knows it done.
    pub hand_off: f64,
    /// By size of passes.
    pub points: Vec<Point>,
}

impl Calibration {
    /// Of new measurements.
    pub fn new(identity: Identity, memory: MemoryRates, hand_off: f64, points: Vec<Point>) -> Self {
        Self { version: VERSION, identity, memory, hand_off, points }
    }

    /// The file for a model and a device in `folder`.
    pub fn path(folder: &Path, identity: &Identity) -> PathBuf {
        file::path(folder, identity)
    }

    /// Reads what was measured for `now` from its file in `folder`.
    ///
    /// # Errors
    /// When there is nothing, or what there is has been made with another machine, driver or program, or is damaged.
    pub fn load(folder: &Path, now: &Identity) -> Result<Self, CalibrationError> {
        file::load(folder, now)
    }

    /// Writes it to its file in `folder`; answers where that is.
    ///
    /// # Errors
    /// When the file cannot be written. What was there before is still there then.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, CalibrationError> {
        file::save(self, folder)
    }

    /// What to compute where.
    pub fn choices(&self) -> Choices {
        let choice = |point: &Point| {
            let best = choose(&point.rates)?.candidate;
            let pass = PassSize { tokens: point.tokens, context: point.depth };
            Some(Choice { pass, best, split_ratio: best_ratio(&point.rates) })
        };
        Choices::new(self.points.iter().filter_map(choice).collect())
    }
}

impl Measured for Calibration {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version: expected {VERSION}, found {}", self.version));
        }
        if self.points.is_empty() {
            return Err("points: expected at least one, found none".to_owned());
        }
        for point in &self.points {
            let at = format!("points of {} tokens after {}", point.tokens, point.depth);
            if point.tokens == 0 {
                return Err(format!("{at}: expected at least one token"));
            }
            if choose(&point.rates).is_none() {
                return Err(format!("{at}: expected rates of a device alone, found none"));
            }
            for rates in &point.rates {
                let valid = |rate: &f64| rate.is_finite() && *rate > 0.0;
                if rates.tokens_per_second.is_empty() || !rates.tokens_per_second.iter().all(valid)
                {
                    let candidate = rates.candidate;
                    return Err(format!("{at}: {candidate}: expected rates above 0"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Candidate;

    fn identity() -> Identity {
        Identity {
            tandem: "0.1.0".to_owned(),
            cpu: "A CPU".to_owned(),
            isa: "avx2".to_owned(),
            threads: "2".to_owned(),
            device: "Intel(R) OpenCL: Arc / Xe".to_owned(),
            driver: "1".to_owned(),
            kernels: "subgroup".to_owned(),
            model: "phi-tiny".to_owned(),
            model_bytes: 5,
            kv_type: "f16".to_owned(),
        }
    }

    fn calibration() -> Calibration {
        let rates = |candidate, rate| Rates { candidate, tokens_per_second: vec![rate; 3] };
        let memory =
            MemoryRates { cpu_alone: 4.0, igpu_alone: 3.0, cpu_together: 3.0, igpu_together: 2.0 };
        let decode = vec![
            rates(Candidate::Cpu, 10.0),
            rates(Candidate::Igpu, 8.0),
            rates(Candidate::Split(0.4), 12.0),
            rates(Candidate::Split(0.2), 11.0),
        ];
        let prompt = vec![
            rates(Candidate::Cpu, 100.0),
            rates(Candidate::Igpu, 300.0),
            rates(Candidate::Split(0.4), 200.0),
        ];
        Calibration::new(
            identity(),
            memory,
            4e-6,
            vec![
                Point { tokens: 1, depth: 0, rates: decode },
                Point { tokens: 256, depth: 0, rates: prompt },
            ],
        )
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("new");
        let path = calibration().save(&inner).unwrap();
        assert_eq!(path, inner.join("phi-tiny.intel-r-opencl-arc-xe.json"));
        let read = Calibration::load(&inner, &identity()).unwrap();
        assert_eq!(read, calibration());
        let choices = read.choices();
        let one = PassSize { tokens: 1, context: 1 };
        let many = PassSize { tokens: 300, context: 300 };
        assert_eq!(choices.best(one), Some((Candidate::Split(0.4), 1)));
        assert_eq!(choices.best(many), Some((Candidate::Igpu, 256)));
        assert_eq!(choices.split_ratio(many), Some(0.4));
    }

    #[test]
    fn what_was_measured_with_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |now: &Identity| {
            let error = Calibration::load(folder.path(), now).unwrap_err().to_string();
            assert!(error.contains("`tandem calibrate`"), "{error}");
            error
        };
        assert!(refused(&identity()).starts_with("nothing is measured"));
        let path = calibration().save(folder.path()).unwrap();
        let driver = Identity { driver: "2".to_owned(), ..identity() };
        assert!(refused(&driver).contains("measured with driver '1', now it is '2'"));
        let bytes = Identity { model_bytes: 6, ..identity() };
        assert!(refused(&bytes).contains("model bytes '5', now it is '6'"));

        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, part) in [
            ("\"version\": 1", "\"version\": 2", "version: expected 1, found 2"),
            ("e\": \"cpu\"", "e\": \"cqu\"", "expected cpu, igpu, default or split=R, found 'cqu'"),
            ("8.0", "-8.0", "points of 1 tokens after 0: igpu: expected rates above 0"),
            ("\"tokens\": 1,", "\"tokens\": 0,", "expected at least one token"),
            ("\"depth\"", "\"deep\"", "unknown field `deep`"),
            ("\n}", "", "EOF while parsing"),
        ] {
            assert!(text.contains(from), "{from}");
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = refused(&identity());
            assert!(error.contains(part), "{to}: {error}");
        }
    }
}
