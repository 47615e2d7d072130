//! What is compared.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tandem_model::PhimoeConfig;

use crate::partition::{Partition, Wanted};
use crate::plan::Planner;

/// A way to compute whole passes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Candidate {
    /// Everything on the CPU.
    Cpu,
    /// Everything on the GPU.
    Igpu,
    /// The usual partition: [`Partition::default`].
    Usual,
    /// This part of the rows of all large products on the GPU; the CPU computes the other rows, and the rest.
    Split(f32),
}

impl Candidate {
    /// Whether one device computes everything.
    pub fn is_single(self) -> bool {
        matches!(self, Self::Cpu | Self::Igpu)
    }

    /// Where it stands in tables: what has no ratio first, then by ratio.
    pub(super) fn order(self) -> f32 {
        match self {
            Self::Cpu => -3.0,
            Self::Igpu => -2.0,
            Self::Usual => -1.0,
            Self::Split(ratio) => ratio,
        }
    }

    /// The partition that it stands for.
    pub fn partition(self) -> Partition {
        match self {
            Self::Cpu => Partition::everything(Wanted::Cpu),
            Self::Igpu => Partition::everything(Wanted::Igpu),
            Self::Usual => Partition::default(),
            Self::Split(ratio) => Partition::everything(Wanted::Split(Some(ratio))),
        }
    }

    /// The plans that it stands for.
    pub(super) fn planner(self, config: &PhimoeConfig) -> Planner {
        self.partition().planner(config, None)
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Igpu => f.write_str("igpu"),
            Self::Usual => f.write_str("default"),
            Self::Split(ratio) => write!(f, "split={ratio}"),
        }
    }
}

impl FromStr for Candidate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(Wanted::Cpu) => Ok(Self::Cpu),
            Ok(Wanted::Igpu) => Ok(Self::Igpu),
            Ok(Wanted::Split(Some(ratio))) => Ok(Self::Split(ratio)),
            _ if text == "default" => Ok(Self::Usual),
            _ => Err(format!("expected cpu, igpu, default or split=R, found '{text}'")),
        }
    }
}

impl TryFrom<String> for Candidate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Candidate> for String {
    fn from(candidate: Candidate) -> Self {
        candidate.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        use Candidate::{Cpu, Igpu, Split, Usual};
        for candidate in [Cpu, Igpu, Usual, Split(0.35), Split(1.0)] {
            assert_eq!(candidate.to_string().parse(), Ok(candidate));
        }
        for text in ["auto", "split", "split=2", ""] {
            assert!(text.parse::<Candidate>().is_err(), "{text}");
        }
    }
}
