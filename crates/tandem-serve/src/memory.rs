//! Memory of this process.

/// Bytes that are resident now; none where the system does not tell.
pub(crate) fn resident() -> Option<u64> {
    field("VmRSS:")
}

/// The most bytes that were resident; none as above.
pub(crate) fn peak() -> Option<u64> {
    field("VmHWM:")
}

fn field(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
