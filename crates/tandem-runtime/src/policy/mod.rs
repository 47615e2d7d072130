//! How it is decided where steps are computed while the engine runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which policy decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// The partition's table, and what was calibrated.
    Static,
    /// The table, with an eye on the memory's live bandwidth.
    #[default]
    BandwidthAware,
    /// Step by step, by measured cost.
    Adaptive,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Static, Self::BandwidthAware, Self::Adaptive];

    /// The name in configs and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::BandwidthAware => "bandwidth_aware",
            Self::Adaptive => "adaptive",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not a policy's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy: expected {}, found '{found}'", PolicyKind::ALL.map(PolicyKind::name).join(", "))]
pub struct UnknownPolicy {
    /// The name.
    pub found: String,
}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let kind = Self::ALL.into_iter().find(|kind| kind.name() == text);
        kind.ok_or_else(|| UnknownPolicy { found: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kind in PolicyKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.name()));
        }
        let message = "adaptve".parse::<PolicyKind>().unwrap_err().to_string();
        assert_eq!(message, "policy: expected static, bandwidth_aware, adaptive, found 'adaptve'");
    }
}
