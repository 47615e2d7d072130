//! `devices` and `doctor`: with the OpenCL that tests have, with none, and with a broken one.

use serde_json::Value;
use tandem_testkit::{OPENCL_EXPECTED, scratch};

use crate::{stderr, stdout, tandem};

fn json(command: &mut assert_cmd::Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn the_cpu_is_always_there() {
    let found = json(tandem().args(["devices", "--json"]));
    assert!(found["cpu"]["cores"].as_u64().unwrap() > 0);
    assert!(found["cpu"]["read_bytes_per_second"].as_f64().unwrap() > 1e8);
    for device in found["devices"].as_array().unwrap() {
        assert!(device["error"].is_null(), "{device}");
        assert!(device["bytes_per_second"]["copy"].as_f64().unwrap() > 1e7, "{device}");
        assert_eq!(device["used"], device["why_not_used"].is_null());
    }
}

#[test]
fn cpus_are_used_only_by_name() {
    let Ok(expected) = std::env::var(OPENCL_EXPECTED) else { return };
    let found = json(tandem().args(["devices", "--json", "--no-measure"]));
    let devices = found["devices"].as_array().unwrap();
    assert!(devices.len() >= expected.split(',').count());
    for device in devices.iter().filter(|device| device["kind"] == "cpu") {
        assert_eq!(device["used"], false);
        assert!(device["why_not_used"].as_str().unwrap().contains("it is the CPU"), "{device}");
    }
    let mut command = tandem();
    command.env("TANDEM_GPU_DEVICE", "intel(r) opencl");
    let found = json(command.args(["devices", "--json", "--no-measure"]));
    let used = found["devices"].as_array().unwrap().iter().find(|d| d["used"] == true).unwrap();
    assert_eq!(used["platform"], "Intel(R) OpenCL");
    assert_eq!(used["sharing"], "usm-host");
    let text = stdout(&tandem().args(["devices", "--no-measure"]).output().unwrap());
    assert!(text.contains("is not used: it is the CPU, which computes anyway"), "{text}");
}

#[test]
fn without_opencl_there_is_a_reason_and_no_error() {
    // A library that cannot be loaded, found before any that could.
    let empty = scratch("no-opencl");
    std::fs::write(empty.path().join("libOpenCL.so.1"), "").unwrap();
    let without = || {
        let mut command = tandem();
        command.env_remove("OPENCL_DYLIB_PATH").env("LD_LIBRARY_PATH", empty.path());
        command
    };
    let found = json(without().args(["devices", "--json", "--no-measure"]));
    let reason = found["no_opencl"].as_str().unwrap();
    assert!(reason.contains("libOpenCL.so.1 cannot be loaded; install it"), "{reason}");
    let text = stdout(&without().args(["devices", "--no-measure"]).output().unwrap());
    assert!(text.contains("no OpenCL devices: libOpenCL.so.1 cannot be loaded"), "{text}");
    let doctor = json(without().args(["doctor", "--json"]));
    assert!(doctor["opencl"]["error"].as_str().unwrap().contains("libOpenCL.so.1"));
    let output = without().args(["run", "-n", "1", "--temp", "0", "Once"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn broken_driver_files_are_no_panic() {
    if std::env::var(OPENCL_EXPECTED).is_err() {
        return;
    }
    let vendors = scratch("icd");
    for text in ["/nowhere/libgone.so\n", "", "no library\n", "/etc/passwd"] {
        std::fs::write(vendors.path().join("broken.icd"), text).unwrap();
        let mut command = tandem();
        command.env("OCL_ICD_VENDORS", vendors.path());
        let found = json(command.args(["devices", "--json", "--no-measure"]));
        assert_eq!(found["devices"].as_array().unwrap().len(), 0);
        let reason = found["no_opencl"].as_str().unwrap();
        assert!(reason.contains("no driver that works"), "{text:?}: {reason}");
    }
}

#[test]
fn doctor_lists_what_it_finds() {
    let text = stdout(&tandem().arg("doctor").output().unwrap());
    assert!(text.lines().count() >= 3, "{text}");
    assert!(text.lines().all(|line| ["ok  ", "look", "    "].iter().any(|s| line.starts_with(s))));
}
