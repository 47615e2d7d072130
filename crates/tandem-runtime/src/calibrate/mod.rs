//! What was measured on a machine, and what to choose by it.
//!
//! Whole passes of the loaded model are measured, since what is fast by itself may be slow together: everything on one
//! device, the usual partition, and rows split at several ratios. [`Choices`] never has a placement that was measured
//! slower than the better device alone.

mod candidate;
mod choice;
mod file;
mod identity;
mod measure;
mod prefill;
mod record;

pub use candidate::Candidate;
pub use choice::{Choice, Choices, Rates, Verdict, choose, verdicts};
pub use file::CalibrationError;
pub use identity::Identity;
pub use measure::{Effort, measure};
pub use prefill::PrefillRates;
pub use record::{Calibration, MemoryRates, Point};
