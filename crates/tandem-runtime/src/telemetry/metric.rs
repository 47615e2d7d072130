//! Which parts a summary has.

use std::collections::BTreeSet;

/// A part of the [`Summary`](super::Summary).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Times of each operation.
    KernelDuration,
    /// Requests or packets that wait.
    QueueDepth,
    /// The memory's use, and the token that shares it out.
    MemoryBandwidth,
    /// Memory of the process.
    MemoryUsage,
    /// How often each expert was chosen.
    ExpertSelectionDistribution,
    /// Time in which the devices worked at once.
    CpuIgpuContention,
    /// Time in which one device waited for the other.
    PipelineBubbles,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::KernelDuration,
        Self::QueueDepth,
        Self::MemoryBandwidth,
        Self::MemoryUsage,
        Self::ExpertSelectionDistribution,
        Self::CpuIgpuContention,
        Self::PipelineBubbles,
    ];

    /// The name in configs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KernelDuration => "kernel_duration",
            Self::QueueDepth => "queue_depth",
            Self::MemoryBandwidth => "memory_bandwidth",
            Self::MemoryUsage => "memory_usage",
            Self::ExpertSelectionDistribution => "expert_selection_distribution",
            Self::CpuIgpuContention => "cpu_igpu_contention",
            Self::PipelineBubbles => "pipeline_bubbles",
        }
    }

    /// Every metric.
    pub fn all() -> BTreeSet<Self> {
        Self::ALL.into_iter().collect()
    }

    /// The metrics of such names.
    ///
    /// # Errors
    /// When there is no such name.
    pub fn named<'a>(
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<BTreeSet<Self>, UnknownMetric> {
        let find = |name| Self::ALL.into_iter().find(|metric| metric.name() == name);
        let unknown = |name: &str| UnknownMetric { found: name.to_owned() };
        names.into_iter().map(|name| find(name).ok_or_else(|| unknown(name))).collect()
    }
}

/// A name that is not that of a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metrics: expected {}, found {found:?}", Metric::ALL.map(Metric::name).join(", "))]
pub struct UnknownMetric {
    /// The name.
    pub found: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        assert_eq!(Metric::named(Metric::ALL.map(Metric::name)), Ok(Metric::all()));
        let message = Metric::named(["queue_length"]).unwrap_err().to_string();
        assert!(message.starts_with("metrics: expected kernel_duration, "), "{message}");
        assert!(message.ends_with("found \"queue_length\""), "{message}");
    }
}
