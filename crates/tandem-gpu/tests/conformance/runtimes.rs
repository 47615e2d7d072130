//! The devices that the suite runs on.

use std::io::Write;
use std::sync::OnceLock;

use tandem_gpu::{Device, Path};
use tandem_testkit::OPENCL_EXPECTED;

/// How the platforms of the runtimes that `cargo xtask test` installs call themselves.
const PLATFORMS: [(&str, &str); 2] =
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

/// What is known of the runtimes that are installed for tests: a driver's change would leave paths untested.
#[test]
fn every_path_has_a_device() {
    let Ok(expected) = std::env::var(OPENCL_EXPECTED) else { return };
    for device in devices() {
        let info = device.info();
        assert!(info.working && info.unified_memory, "{info:?}");
        assert!(info.memory > 1 << 30 && info.max_allocation > 1 << 28, "{info:?}");
        assert!(info.compute_units > 0 && !info.driver.is_empty(), "{info:?}");
        if info.platform == PLATFORMS[0].1 {
            assert_eq!(info.paths(), Path::ALL);
            assert!(info.usm.host && info.fp16, "{info:?}");
        }
    }
    assert!(expected.split(',').any(|name| name == "intel"), "{expected}");
}

#[test]
fn listing_is_repeatable() {
    let names = || -> Vec<_> { devices().iter().map(|device| device.info().full_name()).collect() };
    let again: Vec<_> =
        tandem_gpu::devices().iter().flatten().map(|d| d.info().full_name()).collect();
    assert_eq!(names(), again);
}
