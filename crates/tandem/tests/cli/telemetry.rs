//! What commands tell of their work, and background mode.

use serde_json::Value;

use crate::{error_line, stderr, stdout, tandem};

const RUN: [&str; 6] = ["run", "Tell me a story.", "--temp", "0", "-n", "12"];

#[test]
fn a_run_leaves_a_summary_rows_and_a_trace_and_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let plain = tandem().args(RUN).output().unwrap();
    let watched = tandem()
        .args(RUN)
        .arg("--telemetry")
        .arg(file("summary.json"))
        .arg("--telemetry-csv")
        .arg(file("rows.csv"))
        .arg("--trace")
        .arg(file("trace.json"))
        .output()
        .unwrap();
    assert!(watched.status.success(), "{}", stderr(&watched));
    assert_eq!(stdout(&watched), stdout(&plain));
    let json = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(file(name)).unwrap()).unwrap()
    };
    let summary = json("summary.json");
    let packets = summary["total_packets_processed"].as_u64().unwrap();
    assert!(packets > 0 && summary["cpu_packets"] == packets, "{summary}");
    assert_eq!(summary["lost_events"], 0);
    for key in ["utilization", "cpu_bandwidth_gbps", "peak_memory_usage_mb"] {
        assert!(summary[key].as_f64().unwrap() > 0.0, "{key}: {summary}");
    }
    assert!(summary["token"]["bytes"].as_u64().unwrap() > 0);
    let rows = std::fs::read_to_string(file("rows.csv")).unwrap();
    assert_eq!(rows.lines().count() as u64, packets + 1);
    let slices = json("trace.json")["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["cat"] == "compute")
        .count();
    assert_eq!(slices as u64, packets);
}

#[test]
fn files_that_cannot_be_written_are_named_before_any_work() {
    let line = error_line(tandem().args(RUN).args(["--trace", "/no/such/folder/trace.json"]));
    assert!(line.contains("/no/such/folder/trace.json"), "{line}");
}

#[test]
fn bench_shows_what_background_mode_lets_through() {
    let bench = |form: &str| {
        let output = tandem()
            .args(["bench", "-p", "0", "-n", "4", "-r", "1", "-c", "64", "-o", form])
            .args(["--background", "0.05"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let rows: Value = serde_json::from_str(&bench("json")).unwrap();
    assert_eq!(rows[0]["background_gbps"], 0.05);
    // It sleeps after each operation as long as its bytes want: it can be slower, but not faster.
    let used = rows[0]["used_bandwidth"].as_f64().unwrap();
    assert!(used > 0.0 && used < 0.055e9, "{used}");
    assert!(bench("md").contains("GB/s used"));
    let output = tandem().args(RUN).args(["--background", "0"]).output().unwrap();
    assert!(stderr(&output).contains("expected more than 0 GB/s"), "{}", stderr(&output));
}
