//! Programs of other people that tests run: a browser, proxies.

use std::env;

/// The environment variable that says that tests must find every such program, as `cargo xtask test` installs them.
pub const PROGRAMS_EXPECTED: &str = "TANDEM_TEST_PROGRAMS";

/// Debian's packages of the programs that tests run.
pub const PROGRAM_PACKAGES: [&str; 4] = ["chromium", "haproxy", "nginx-light", "prometheus"];

/// Whether there is a program of that name. Without it a test says that it tests nothing.
///
/// # Panics
/// When there is none, and tests must find it ([`PROGRAMS_EXPECTED`]).
pub fn has_program(name: &str) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    // Debian's servers are in folders that are not in everybody's path.
    let found = env::split_paths(&folders)
        .chain(["/usr/sbin".into(), "/usr/bin".into()])
        .any(|folder| folder.join(name).is_file());
    assert!(found || env::var_os(PROGRAMS_EXPECTED).is_none(), "{name} is not installed");
    if !found {
        #[allow(clippy::print_stderr)] // shown with the test's name
        {
            eprintln!("NOT TESTED: {name} is not installed (cargo xtask test installs it)");
        }
    }
    found
}
