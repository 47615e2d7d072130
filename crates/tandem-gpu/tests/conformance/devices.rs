//! What devices say of themselves.

use tandem_gpu::Path;
use tandem_testkit::OPENCL_EXPECTED;

use super::runtimes::{PLATFORMS, devices};

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
