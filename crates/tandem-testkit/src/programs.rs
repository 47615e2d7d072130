//! Programs of other people that tests run: a browser, proxies.

use std::env;

/// The environment variable that says that tests must find every such program, as `cargo xtask test` installs them.
pub const PROGRAMS_EXPECTED: &str = "TANDEM_TEST_PROGRAMS";

/// The programs, each with Debian's package that has it.
pub const PROGRAMS: [(&str, &str); 6] = [
    ("chromium", "chromium"),
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("systemd-analyze", "systemd"),
];

/// Whether there is a program of that name.
pub fn program_is_installed(name: &str) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    // Debian's servers are in folders that are not in everybody's path.
    let mut all = env::split_paths(&folders).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    all.any(|folder| folder.join(name).is_file())
}

/// The same, for a test, which says that it tests nothing without it.
///
/// # Panics
/// When there is none, and tests must find it ([`PROGRAMS_EXPECTED`]).
pub fn has_program(name: &str) -> bool {
    let found = program_is_installed(name);
    assert!(found || env::var_os(PROGRAMS_EXPECTED).is_none(), "{name} is not installed");
    if !found {
        #[allow(clippy::print_stderr)] // shown with the test's name
        {
            eprintln!("NOT TESTED: {name} is not installed (cargo xtask test installs it)");
        }
    }
    found
}
