//! Task marks of Intel's ITT interface, which VTune shows beside its samples (feature `itt`).
//!
//! Marks belong to the thread that sets them, so spans have them, and such a span must end in the thread where it began.
//! What is recorded afterwards ([`Recorder::record`](super::Recorder::record)) has none but what was set meanwhile
//! ([`Recorder::mark`](super::Recorder::mark)).

#[cfg(feature = "itt")]
mod itt {
    use std::sync::LazyLock;

    use ittapi::{Domain, Task as IttTask};

    use crate::telemetry::Task;

    /// One for the process, never freed: threads may share a reference to it, but not own it.
    static DOMAIN: LazyLock<&Domain> = LazyLock::new(|| Box::leak(Box::new(Domain::new("tandem"))));

    /// A task of the calling thread, until it is dropped.
    pub(crate) struct Mark(#[expect(dead_code, reason = "its end is its drop")] IttTask<'static>);

    impl Mark {
        pub(crate) fn begin(task: Task) -> Self {
            Self(IttTask::begin(&DOMAIN, task.operation.name()))
        }
    }

    impl std::fmt::Debug for Mark {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Mark")
        }
    }
}

#[cfg(feature = "itt")]
pub(crate) use itt::Mark;

/// No mark.
#[cfg(not(feature = "itt"))]
#[derive(Debug)]
pub(crate) struct Mark;

#[cfg(not(feature = "itt"))]
impl Mark {
    pub(crate) const fn begin(_task: super::Task) -> Self {
        Self
    }
}
