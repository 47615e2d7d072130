//! The devices that the suite runs on.

use std::io::Write;
use std::sync::OnceLock;

use tandem_gpu::Device;
use tandem_testkit::OPENCL_EXPECTED;

/// How the platforms of the runtimes that `cargo xtask test` installs call themselves.
pub(crate) const PLATFORMS: [(&str, &str); 2] =
    [("intel", "Intel(R) OpenCL"), ("pocl", "Portable Computing Language")];

/// Every device there is.
pub(crate) fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let found = tandem_gpu::devices();
        match std::env::var(OPENCL_EXPECTED) {
            Ok(expected) => {
                let found = found.expect("OpenCL");
                for name in expected.split(',') {
                    let platform = PLATFORMS.iter().find(|(n, _)| *n == name).expect("a runtime").1;
                    let there = found.iter().any(|d| d.info().platform == platform);
                    assert!(there, "{name} is installed for tests, but '{platform}' has no device");
                }
                found
            }
            Err(_) => {
                let names: Vec<_> =
                    found.iter().flatten().map(|d| d.info().full_name()).collect();
                // Past the test harness, which hides what tests that pass have printed.
                let _closed = writeln!(
                    std::io::stderr(),
                    "\nNOT TESTED: the OpenCL runtimes that `cargo xtask test` installs; tested: {}\n",
                    if names.is_empty() { "NOTHING".to_owned() } else { names.join(", ") }
                );
                found.unwrap_or_default()
            }
        }
    })
}
