//! From options to a thread team, and words for what it uses.

use std::sync::{Arc, LazyLock};

use tandem_cpu::{ThreadTeam, Topology};
use tandem_runtime::{Executor, RuntimeError, Threads};

use crate::options::ComputeOptions;

static TOPOLOGY: LazyLock<Topology> = LazyLock::new(Topology::detect);

/// The CPU's name, as its maker gives it.
pub(crate) fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    let name = name.and_then(|line| line.split_once(':'));
    name.map_or("CPU", |(_, name)| name.trim()).to_owned()
}

/// The threads that the options ask for.
pub(crate) fn counts(compute: &ComputeOptions) -> Threads {
    let decode = compute.threads.unwrap_or_else(|| TOPOLOGY.default_threads());
    Threads { decode, prefill: compute.threads_batch.unwrap_or(decode) }
}

/// Starts a team for so many threads; binds them where that is wanted and possible.
pub(crate) fn team(threads: Threads, pin: bool) -> tandem_runtime::Result<Arc<ThreadTeam>> {
    let threads = threads.team_size();
    let mut team =
        ThreadTeam::new(threads).map_err(|source| RuntimeError::Threads { threads, source })?;
    if pin && let Err(e) = team.pin(&TOPOLOGY.pin_order()) {
        note!("--pin: threads are not bound to CPUs: {e}");
    }
    Ok(Arc::new(team))
}

/// "14 threads for 6 P + 8 E cores (2 LP-E left out)", "1 thread (2 for prompts)".
pub(crate) fn describe(executor: &Executor) -> String {
    words(&TOPOLOGY, executor.threads(), executor.team().is_pinned())
}

fn words(topology: &Topology, threads: Threads, pinned: bool) -> String {
    let Threads { decode, prefill } = threads;
    let mut text = format!("{decode} thread{}", if decode == 1 { "" } else { "s" });
    if prefill != decode {
        text += &format!(" ({prefill} for prompts)");
    }
    if pinned {
        text += ", each bound to a CPU,";
    }
    if let Some(cores) = topology.describe(decode) {
        text += &format!(" for {cores}");
    }
    text.trim_end_matches(',').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_said() {
        let sys = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = sys.path().join("devices").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        file("system/cpu/online", "0-5\n");
        let alike = Topology::read(sys.path(), None, 6);
        file("cpu_core/cpus", "0-1\n");
        file("cpu_atom/cpus", "2-4\n");
        file("cpu_lowpower/cpus", "5\n");
        let mixed = Topology::read(sys.path(), None, 6);
        let same = Threads::same;
        assert_eq!(words(&alike, same(1), false), "1 thread");
        assert_eq!(words(&alike, same(6), true), "6 threads, each bound to a CPU");
        assert_eq!(
            words(&mixed, same(5), false),
            "5 threads for 2 P + 3 E cores (1 LP-E left out)"
        );
        assert_eq!(words(&mixed, same(6), false), "6 threads");
        let threads = Threads { decode: 2, prefill: 5 };
        assert_eq!(words(&mixed, threads, true), "2 threads (5 for prompts), each bound to a CPU");
    }
}
