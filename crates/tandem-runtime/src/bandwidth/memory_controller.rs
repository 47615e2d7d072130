//! What the memory controller counts: all that the machine reads from memory and writes to it, whoever asks for it.
//!
//! Intel's controllers have counters that Linux shows as `uncore_imc*` among the event sources of `perf`. Those of client
//! processors run freely since Tiger Lake (`uncore_imc_free_running_0` and `_1` on Meteor Lake, events `data_read` and
//! `data_write` in units of 64 bytes); servers have `cas_count_read` and `cas_count_write` in each `uncore_imc_N`. Where
//! both kinds are there, the freely running ones count, as they take no counter from others. Counting for the whole
//! machine needs a permission (`CAP_PERFMON`, or `kernel.perf_event_paranoid` at 0 or below).

use std::io;
use std::path::PathBuf;

/// Names of the events for reading and writing, of which a controller has one pair.
const EVENTS: [[&str; 2]; 4] = [
    ["data_read", "data_write"],
    ["data_reads", "data_writes"],
    ["cas_count_read", "cas_count_write"],
    ["read", "write"],
];

/// Bytes since the counters were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Read from memory.
    pub read: f64,
    /// Written to memory.
    pub written: f64,
}

/// Why the memory controller's counters cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ControllerUnavailable {
    /// The machine, or the virtual machine, has none, or the kernel does not know them.
    #[error("no memory controller counters: {} has no uncore_imc* with events for reading and writing", .0.display())]
    None(PathBuf),
    /// They may not be used.
    #[error(
        "{pmu}: {source} (counting for the whole machine needs CAP_PERFMON, or kernel.perf_event_paranoid at 0 or below)"
    )]
    Refused {
        /// The event source.
        pmu: String,
        /// The system's reason.
        source: io::Error,
    },
    /// What the kernel says about them makes no sense.
    #[error("{}: expected {expected}", .path.display())]
    Description {
        /// The file or folder.
        path: PathBuf,
        /// What should be there.
        expected: String,
    },
}

#[cfg(target_os = "linux")]
pub(super) use linux::MemoryController;

#[cfg(target_os = "linux")]
mod linux {
    use std::path::Path;

    use perf_event::events::Dynamic;
    use perf_event::{Builder, Counter};
    use tandem_cpu::cpu_list;

    use super::{ControllerUnavailable, EVENTS, PathBuf, Traffic};

    type Result<T> = std::result::Result<T, ControllerUnavailable>;

    /// The counters, open.
    #[derive(Debug)]
    pub(in super::super) struct MemoryController(Vec<OpenEvent>);

    #[derive(Debug)]
    struct OpenEvent {
        writes: bool,
        bytes_per_count: f64,
        counter: Counter,
    }

    /// An event that counts bytes, as the kernel describes it.
    #[derive(Debug)]
    pub(super) struct ByteEvent {
        pub(super) pmu: String,
        pub(super) writes: bool,
        pub(super) bytes_per_count: f64,
        /// One CPU of each package, on which its controllers are counted.
        pub(super) cpus: Vec<usize>,
        pub(super) event: Dynamic,
    }

    impl MemoryController {
        /// Opens the counters of all controllers of this machine.
        pub(in super::super) fn open() -> Result<Self> {
            let events = describe(Path::new("/sys/bus/event_source/devices"))?;
            let opened = events.iter().flat_map(|event| {
                event.cpus.iter().map(|&cpu| {
                    let refused = |source| {
                        let pmu = event.pmu.clone();
                        ControllerUnavailable::Refused { pmu, source }
                    };
                    let counter = count(event.event, cpu).map_err(refused)?;
                    let ByteEvent { writes, bytes_per_count, .. } = *event;
                    Ok(OpenEvent { writes, bytes_per_count, counter })
                })
            });
            Ok(Self(opened.collect::<Result<_>>()?))
        }

        /// Bytes since the counters were opened.
        pub(in super::super) fn traffic(&mut self) -> std::io::Result<Traffic> {
            let mut traffic = Traffic::default();
            for event in &mut self.0 {
                let bytes = event.counter.read()? as f64 * event.bytes_per_count;
                *(if event.writes { &mut traffic.written } else { &mut traffic.read }) += bytes;
            }
            Ok(traffic)
        }
    }

    /// Counts an event of a CPU, whatever runs there.
    pub(super) fn count(event: Dynamic, cpu: usize) -> std::io::Result<Counter> {
        // Such counters cannot tell the kernel's doings from others', and refuse to be asked.
        Builder::new(event)
            .any_pid()
            .one_cpu(cpu)
            .exclude_kernel(false)
            .exclude_hv(false)
            .enabled(true)
            .build()
    }

    /// The events to count, from the folder of event sources.
    pub(super) fn describe(sources: &Path) -> Result<Vec<ByteEvent>> {
        let none = || ControllerUnavailable::None(sources.to_owned());
        let mut pmus: Vec<String> = std::fs::read_dir(sources)
            .map_err(|_| none())?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("uncore_imc"))
            .collect();
        pmus.sort();
        let mut events = Vec::new();
        for pmu in &pmus {
            events.extend(describe_pmu(&sources.join(pmu), pmu)?);
        }
        let free = |event: &ByteEvent| event.pmu.contains("free_running");
        if events.iter().any(free) {
            events.retain(free);
        }
        if events.is_empty() { Err(none()) } else { Ok(events) }
    }

    /// The two events of one event source; none where it has others.
    fn describe_pmu(path: &Path, pmu: &str) -> Result<Vec<ByteEvent>> {
        let is_there = |event: &&str| path.join("events").join(event).is_file();
        let Some(pair) = EVENTS.iter().find(|pair| pair.iter().all(is_there)) else {
            return Ok(Vec::new());
        };
        let cpus: Vec<usize> = std::fs::read_to_string(path.join("cpumask"))
            .ok()
            .and_then(|text| cpu_list(text.trim()))
            .filter(|cpus| !cpus.is_empty())
            .ok_or_else(|| wrong(path.join("cpumask"), "a list of CPUs"))?
            .into_iter()
            .collect();
        let event = |(name, writes)| {
            let (event, bytes_per_count) = describe_event(path, name)?;
            let (pmu, cpus) = (pmu.to_owned(), cpus.clone());
            Ok(ByteEvent { pmu, writes, bytes_per_count, cpus, event })
        };
        [(pair[0], false), (pair[1], true)].into_iter().map(event).collect()
    }

    /// An event, and the bytes of one count of it.
    fn describe_event(pmu: &Path, name: &str) -> Result<(Dynamic, f64)> {
        let file = pmu.join("events").join(name);
        let broken = |error: std::io::Error| {
            wrong(file.clone(), format!("a description of an event ({error})"))
        };
        let mut builder = Dynamic::builder(pmu).map_err(broken)?;
        builder.event(name).map_err(broken)?;
        let event = builder.build().map_err(|error| broken(std::io::Error::other(error)))?;
        let scale = builder.scale().map_err(broken)?;
        match (scale, builder.unit().map_err(broken)?.as_deref()) {
            (Some(scale), Some("MiB")) if scale.is_finite() && scale > 0.0 => {
                Ok((event, scale * (1 << 20) as f64))
            }
            _ => Err(wrong(file, "a scale, and MiB as its unit".to_owned())),
        }
    }

    fn wrong(path: PathBuf, expected: impl Into<String>) -> ControllerUnavailable {
        ControllerUnavailable::Description { path, expected: expected.into() }
    }
}

#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(super) struct MemoryController;

#[cfg(not(target_os = "linux"))]
impl MemoryController {
    pub(super) fn open() -> Result<Self, ControllerUnavailable> {
        Err(ControllerUnavailable::None(PathBuf::from("this system")))
    }

    pub(super) fn traffic(&mut self) -> io::Result<Traffic> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
