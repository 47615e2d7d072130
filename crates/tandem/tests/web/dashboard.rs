//! The dashboard in a real browser: `dashboard.py` drives it.

use std::path::Path;

use serde_json::Value;
use tandem_testkit::{OPENCL_EXPECTED, has_program, run_python_in, web_python};

use crate::Server;

/// GB/s: the demo model writes some 100 tokens a second then. Unbounded, a text is there before the page is drawn twice.
const SLOW: &str = "0.6";

/// What the page showed, with screenshots under `target/tmp/dashboard-NAME`.
fn drive(name: &str, server: &Server, key: &str, wanted: &str) -> Value {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dashboard-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    let script = include_str!("dashboard.py");
    let seen =
        run_python_in(&web_python(), script, &[&server.url, folder.to_str().unwrap(), key, wanted]);
    serde_json::from_str(&seen).unwrap()
}

#[test]
fn everything_is_live_on_the_cpu() {
    if !has_program("chromium") {
        return;
    }
    let server = Server::start(&["--placement", "cpu", "--background", SLOW]);
    let seen = drive("cpu", &server, "", "cpu");
    let note = seen["light"]["answer"]["note"].as_str().unwrap();
    assert!(note.contains("tokens/s"), "{note}");
}

#[test]
fn everything_is_live_with_a_gpu_and_a_key() {
    if !has_program("chromium") {
        return;
    }
    let Ok(expected) = std::env::var(OPENCL_EXPECTED) else { return };
    let device = if expected.contains("intel") { "intel(r) opencl" } else { "portable computing" };
    let placement = ["--placement", "split=0.5", "--device", device, "--background", SLOW];
    let server = Server::start(&[&placement[..], &["--api-key", "open-sesame"]].concat());
    drive("gpu", &server, "open-sesame", "split");
}
