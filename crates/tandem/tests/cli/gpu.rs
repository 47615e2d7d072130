//! Computing with a GPU: an OpenCL implementation for CPUs takes its place, where tests expect one. What it computes is
//! held against the reference in tandem-runtime.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use tandem_testkit::{OPENCL_EXPECTED, scratch};

use crate::{error_line, random_model, stderr, stdout, tandem};

const RUN: [&str; 6] = ["run", "Tell me a story.", "-n", "6", "--temp", "0"];

/// A part of the name of a runtime that tests must find, if they must find any.
fn device() -> Option<&'static str> {
    let expected = std::env::var(OPENCL_EXPECTED).ok()?;
    Some(if expected.contains("intel") { "intel(r) opencl" } else { "portable computing" })
}

/// The program, which keeps compiled kernels for the next test, and measurements in a folder.
fn with(config: &Path) -> Command {
    let mut command = tandem();
    command
        .env("XDG_CONFIG_HOME", config)
        .env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command
}

fn run(command: &mut Command) -> (String, String) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    (stdout(&output), stderr(&output))
}

#[test]
fn the_text_is_the_same_wherever_it_is_computed() {
    let Some(device) = device() else { return };
    let config = scratch("gpu-config");
    let (expected, _) = run(with(config.path()).args(RUN));
    for (placement, words) in [
        ("igpu", ": igpu, prompts igpu (by --placement igpu)"),
        ("default", ": mixed, prompts mixed (by --placement default"),
        ("split=0.5", ": split=0.5, prompts split=0.5 (by --placement split=0.5)"),
    ] {
        let mut command = with(config.path());
        let (text, notes) =
            run(command.args(RUN).args(["--device", device, "--placement", placement]));
        assert_eq!(text, expected, "{placement}");
        assert!(notes.to_lowercase().contains(device) && notes.contains(words), "{notes}");
    }
}

#[test]
fn without_a_gpu_the_cpu_computes_and_says_so() {
    let config = scratch("gpu-config");
    let empty = scratch("no-opencl");
    fs::write(empty.path().join("libOpenCL.so.1"), "").unwrap();
    let vendors = scratch("icd");
    fs::write(vendors.path().join("broken.icd"), "/nowhere/libgone.so\n").unwrap();
    let (expected, _) = run(with(config.path()).args(RUN).args(["--placement", "cpu"]));
    let no_library = |command: &mut Command| {
        command.env_remove("OPENCL_DYLIB_PATH").env("LD_LIBRARY_PATH", empty.path());
    };
    let broken_driver = |command: &mut Command| {
        command.env("OCL_ICD_VENDORS", vendors.path());
    };
    let no_such_device = |command: &mut Command| {
        command.args(["--device", "no such device"]);
    };
    for set in [&no_library as &dyn Fn(&mut Command), &broken_driver, &no_such_device] {
        let mut command = with(config.path());
        command.args(RUN).args(["--placement", "split"]);
        set(&mut command);
        let (text, notes) = run(&mut command);
        assert_eq!(text, expected);
        let lines =
            notes.lines().filter(|line| line.starts_with("the CPU computes everything: no OpenCL"));
        assert_eq!(lines.count(), 1, "{notes}");
        let mut command = with(config.path());
        command.args(RUN);
        set(&mut command);
        let (text, notes) = run(&mut command);
        assert_eq!(text, expected);
        assert!(notes.contains("(no GPU to use: `tandem devices` says why)"), "{notes}");
    }
    let mut command = with(config.path());
    let message = error_line(command.args(["calibrate", "--device", "no such device"]));
    assert!(message.contains("nothing to compare: no OpenCL"), "{message}");
}

/// Keys and values in 8 bits too.
#[test]
fn a_small_cache_keeps_nothing_from_the_gpu() {
    let Some(device) = device() else { return };
    let config = scratch("gpu-config");
    let run_q8_0 =
        |more: &[&str]| run(with(config.path()).args(RUN).args(["--kv-type", "q8_0"]).args(more));
    let (expected, _) = run_q8_0(&[]);
    let (text, notes) = run_q8_0(&["--device", device, "--placement", "igpu", "--explain"]);
    assert_eq!(text, expected);
    assert!(notes.contains("placed by --placement igpu"), "{notes}");
    assert!(!notes.contains(" stays on the CPU"), "{notes}");
}

#[test]
fn a_limit_keeps_the_gpu_out() {
    let Some(device) = device() else { return };
    let config = scratch("gpu-config");
    let file = config.path().join("p.yaml");
    fs::write(&file, "global: {igpu_memory_limit: 1}\n").unwrap();
    let mut command = with(config.path());
    let (_, notes) = run(command.args(RUN).args(["--device", device, "--config"]).arg(&file));
    assert!(
        notes.contains("the CPU computes everything: global.igpu_memory_limit: expected at least"),
        "{notes}"
    );
}

#[test]
fn what_the_gpu_fails_at_is_said_and_the_cpu_goes_on() {
    let Some(device) = device() else { return };
    let config = scratch("gpu-config");
    let (expected, _) = run(with(config.path()).args(RUN));
    let put_aside = "the GPU failed and was put aside, and the CPU goes on: ";
    for (fault, line, reason) in [
        ("build", put_aside, ".cl does not compile for "),
        ("enqueue", put_aside, "clEnqueueNDRangeKernel failed"),
        ("time-out", put_aside, "the device took "),
        ("device-lost", put_aside, "clFinish failed"),
        // Too little memory for the weights.
        ("allocation", "the CPU computes everything: ", "cannot allocate "),
    ] {
        let mut command = with(config.path());
        command.args(RUN).args(["--device", device, "--placement", "igpu", "--gpu-fault", fault]);
        let (text, notes) = run(&mut command);
        assert_eq!(text, expected, "{fault}");
        let is_it = |found: &&str| found.starts_with(line) && found.contains(reason);
        assert_eq!(notes.lines().filter(is_it).count(), 1, "{fault}: {notes}");
    }
}

/// As a GPU with memory of its own, with room for a part of the experts.
#[test]
fn a_cache_of_experts_changes_nothing_but_what_is_there() {
    let Some(device) = device() else { return };
    let config = scratch("gpu-config");
    let gpu = ["--device", device, "--placement", "igpu", "--gpu-memory", "own"];
    let (expected, _) = run(with(config.path()).args(RUN));
    // All experts of the demo model are 15 MB, those of a layer 2.5.
    for (mb, words) in [("4", "expert cache: "), ("64", "no expert cache: all experts fit")] {
        let mut command = with(config.path());
        command.args(RUN).args(gpu).args(["--expert-cache-mb", mb, "--explain"]);
        let (text, notes) = run(&mut command);
        assert_eq!(text, expected, "{mb}");
        assert!(notes.lines().any(|line| line.starts_with(words)), "{notes}");
        assert_eq!(notes.contains("uses found their expert"), mb == "4", "{notes}");
    }
    let mut command = with(config.path());
    command.args(RUN).args(gpu).args(["--expert-cache-mb", "1"]);
    let (text, notes) = run(&mut command);
    assert_eq!(text, expected);
    let reason =
        "the CPU computes everything: expert cache: expected at least 3 MB for the experts";
    assert!(notes.contains(reason), "{notes}");
    // Where memory is shared there is nothing to cache.
    let mut command = with(config.path());
    command.args(RUN).args(["--device", device, "--placement", "igpu", "--explain"]);
    let (_, notes) = run(command.args(["--expert-cache-mb", "4"]));
    assert!(notes.contains("no expert cache: the device reads experts where they are"), "{notes}");
}

#[test]
fn bench_shows_the_cache_of_experts() {
    let Some(device) = device() else { return };
    let config = scratch("gpu-config");
    let mut command = with(config.path());
    command.args(["bench", "-p", "8", "-n", "2", "-r", "1", "-c", "64", "--device", device]);
    command.args(["--placement", "igpu", "--gpu-memory", "own", "--expert-cache-mb", "4"]);
    let rows: Value = serde_json::from_str(&run(command.args(["-o", "json"])).0).unwrap();
    for row in rows.as_array().unwrap() {
        let cache = &row["expert_cache"];
        assert!(cache["misses"].as_u64().unwrap() > 0, "{row}");
        assert!(cache["upload_seconds"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn what_was_measured_decides() {
    let Some(device) = device() else { return };
    let config = scratch("gpu-config");
    let args = ["-t", "2", "-c", "64", "--batch", "16", "--device", device];
    let plan = |more: &[&str]| -> Value {
        let mut command = with(config.path());
        command.args(["plan", "--json"]).args(args).args(more).arg("-m").arg(random_model());
        serde_json::from_str(&run(&mut command).0).unwrap()
    };
    let why = |plan: &Value| plan["why"].as_str().unwrap().to_owned();

    let before = why(&plan(&[]));
    assert!(
        before.contains("is not used: nothing is measured for this model and device"),
        "{before}"
    );
    let mut command = with(config.path());
    command.args(["calibrate", "--quick", "--json"]).args(args).arg("-m").arg(random_model());
    let measured: Value = serde_json::from_str(&run(&mut command).0).unwrap();
    assert!(measured["hand_off"].as_f64().unwrap() > 0.0);
    for rate in ["cpu_alone", "igpu_alone", "cpu_together", "igpu_together"] {
        assert!(measured["memory"][rate].as_f64().unwrap() > 1e6, "{measured}");
    }
    let points = measured["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);

    for (point, tokens) in points.iter().zip(["1", "16"]) {
        assert_eq!(point["tokens"].to_string(), tokens);
        let candidates: Vec<_> =
            point["rates"].as_array().unwrap().iter().map(|r| r["candidate"].clone()).collect();
        assert_eq!(candidates, ["cpu", "igpu", "default", "split=0.3", "split=0.7"]);
        let plan = plan(&["--tokens", tokens]);
        assert_eq!(why(&plan), "as measured by `tandem calibrate`");
        let reason = plan["steps"][0]["why"].as_str().unwrap();
        let end = format!(" was fastest with passes of {tokens}");
        assert!(reason.starts_with("auto: ") && reason.ends_with(&end), "{reason}");
    }
    let mut command = with(config.path());
    command.args(["plan", "--explain"]).args(args).arg("-m").arg(random_model());
    let (text, _) = run(&mut command);
    assert!(text.contains("passes of 16 tokens after 0:") && text.contains("| chosen "), "{text}");

    // Other options than those that were measured with.
    let stale = why(&plan(&["--kv-type", "f32"]));
    assert!(stale.contains("measured with KV type 'f16', now it is 'f32'"), "{stale}");
    assert!(stale.contains("`tandem calibrate` measures again"), "{stale}");
    let folder = config.path().join("tandem/calibration");
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    fs::write(&files[0], "{}").unwrap();
    let damaged = why(&plan(&[]));
    assert!(damaged.contains("missing field") && damaged.contains("makes it anew"), "{damaged}");
}

#[test]
fn bench_shows_both_devices() {
    let Some(device) = device() else { return };
    let config = scratch("gpu-config");
    let bench = |more: &[&str]| {
        let mut command = with(config.path());
        command.args(["bench", "-p", "8", "-n", "2", "-r", "1", "-c", "64", "--device", device]);
        run(command.args(["--placement", "split=0.5"]).args(more).arg("-m").arg(random_model())).0
    };
    let rows: Value = serde_json::from_str(&bench(&["-o", "json", "--profile"])).unwrap();
    for row in rows.as_array().unwrap() {
        let backend = row["backend"].as_str().unwrap();
        assert!(backend.contains(" + ") && backend.ends_with(", split=0.5"), "{backend}");
        assert!(row["waits_per_token"].as_f64().unwrap() > 0.0, "{row}");
        let share = row["igpu_share"].as_f64().unwrap();
        assert!((0.2..0.8).contains(&share), "{row}");
        let profile = row["profile"].as_array().unwrap();
        let lm_head = profile.iter().find(|row| row["operation"] == "lm_head").unwrap();
        assert!(lm_head["gpu_microseconds_per_token"].as_f64().unwrap() > 0.0, "{lm_head}");
        assert!(lm_head["gpu_bytes_per_token"].as_f64().unwrap() > 0.0, "{lm_head}");
    }
    let table = bench(&["--profile"]);
    let header = table.lines().next().unwrap();
    let columns: Vec<_> = header.split('|').map(str::trim).collect();
    assert!(columns.contains(&"waits") && columns.contains(&"GPU"), "{table}");
    assert!(table.contains("| waiting us | GPU us |"), "{table}");
}
