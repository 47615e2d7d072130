//! How it is decided where steps are computed while the engine runs.

mod adaptive;
mod bandwidth_aware;
mod decide;
mod idle;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::partition::Partition;
pub use adaptive::Adaptive;
pub use bandwidth_aware::BandwidthAware;
pub use decide::{Policy, Situation, Static};
pub use idle::CpuIdle;

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

    /// A policy of this kind, as a config wants it.
    pub fn policy(self, partition: &Partition) -> Box<dyn Policy> {
        match self {
            Self::Static => Box::new(Static),
            Self::BandwidthAware => {
                let least = partition.scheduling().micro_batch;
                Box::new(BandwidthAware::new(*partition.bandwidth(), least))
            }
            Self::Adaptive => Box::new(Adaptive::default()),
        }
    }

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
pub(crate) mod tests {
    use super::*;
    use crate::plan::PassSize;
    use tandem_model::PhimoeConfig;

    /// A model of one layer.
    pub(crate) fn one_layer() -> PhimoeConfig {
        PhimoeConfig { n_layers: 1, ..crate::plan::two_layers() }
    }

    /// One token of a text, with so much of the bandwidth in use.
    pub(crate) fn situation(utilization: f64) -> Situation {
        Situation {
            pass: PassSize { tokens: 1, context: 1 },
            reads: false,
            writes: true,
            waiting: 0,
            utilization: Some(utilization),
            has_igpu: true,
        }
    }

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
