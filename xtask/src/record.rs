//! What a result must say about itself: when, where, which version.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::shell::{output, root};

/// Where results go.
pub(crate) fn results_folder() -> anyhow::Result<PathBuf> {
    let folder = root().join("bench/results");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Today, as in 2026-11-23.
pub(crate) fn date() -> anyhow::Result<String> {
    Ok(output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_owned())
}

/// What is checked out, and whether it was changed since.
pub(crate) fn commit() -> anyhow::Result<String> {
    let mut git = Command::new("git");
    Ok(output(git.current_dir(root()).args(["describe", "--always", "--dirty"]))?.trim().to_owned())
}

/// Processor, cores and memory.
pub(crate) fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cpu = read("/proc/cpuinfo");
    json!({
        "cpu": field(&cpu, "model name"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": field(&read("/proc/meminfo"), "MemTotal"),
        "instruction_sets": field(&cpu, "flags")
            .split(' ')
            .filter(|f| ["avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni"].contains(f))
            .collect::<Vec<_>>(),
    })
}
