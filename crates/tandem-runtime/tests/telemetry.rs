//! Telemetry from what is recorded to its files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_runtime::bandwidth::{
    BandwidthToken, ByteCounters, Capacity, Monitor, MonitorParams, Priority, TokenParams,
};
use tandem_runtime::telemetry::{
    Gauge, Metric, Recorder, Summary, Task, Telemetry, TelemetryParams,
};
use tandem_runtime::{Device, Operation};
use tempfile::TempDir;

/// Keys that clients have always read.
const KEYS: [&str; 13] = [
    "total_packets_processed",
    "cpu_packets",
    "igpu_packets",
    "failed_packets",
    "total_cpu_time_ms",
    "total_igpu_time_ms",
    "avg_cpu_time_ms",
    "avg_igpu_time_ms",
    "current_queue_depth",
    "peak_memory_usage_mb",
    "cpu_bandwidth_gbps",
    "igpu_bandwidth_gbps",
    "cpu_igpu_contention",
];

const COLUMNS: &str = "timestamp,device,worker_instance,duration_ms,packet_id,layer_idx,operation,success,\
     memory_used_mb,error_message";

/// A session, and an ideal pipeline's beginning: 4 ms of the CPU, from the third on with 3 ms of the iGPU.
fn session(params: &TelemetryParams) -> (Telemetry, Instant) {
    let telemetry = Telemetry::start(params).unwrap();
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let recorder = telemetry.recorder();
    let qkv = Task::new(Operation::AttentionQkvProj, Some(0), Device::Cpu);
    recorder.record(qkv, at(0), at(3), 6_000_000);
    let qkv = Task { layer: Some(1), worker: 1, packet: 7, ..qkv };
    recorder.record(qkv, at(2), at(4), 3_000_000);
    let ffn = Task::new(Operation::ExpertFfnW1, Some(0), Device::Igpu);
    recorder.record(ffn, at(2), at(5), 12_000_000);
    (telemetry, start)
}

fn params() -> TelemetryParams {
    TelemetryParams::new(2, 3)
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 0.01 * expected.abs(), "{found} for {expected}");
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_summary_adds_up() {
    let (telemetry, _) = session(&params());
    let recorder = telemetry.recorder();
    recorder.experts(1, [2, 0]);
    recorder.experts(1, [2]);
    recorder.experts(9, [0]);
    let summary = telemetry.summary();
    assert_eq!(
        (summary.totals.cpu_packets, summary.totals.igpu_packets, summary.totals.failed_packets),
        (2, 1, 0)
    );
    assert_eq!(summary.totals.total_packets_processed, 3);
    assert_eq!((summary.totals.total_cpu_time_ms, summary.totals.total_igpu_time_ms), (5.0, 3.0));
    assert_eq!((summary.totals.avg_cpu_time_ms, summary.totals.avg_igpu_time_ms), (2.5, 3.0));
    assert_eq!(summary.lost_events, 0);

    let [cpu, igpu] = summary.devices;
    assert_eq!((cpu.busy_ms, cpu.bytes, cpu.gbps_while_busy), (4.0, 9_000_000, 2.25));
    assert_eq!((igpu.busy_ms, igpu.gbps_while_busy), (3.0, 4.0));
    close(cpu.busy_share, 4.0 / summary.duration_ms);
    close(summary.totals.igpu_bandwidth_gbps, 12.0 / summary.duration_ms);

    let overlap = summary.overlap.unwrap();
    assert_eq!((overlap.both_busy_ms, overlap.share), (2.0, 0.4));
    let bubbles = summary.pipeline_bubbles.unwrap();
    assert_eq!((bubbles.cpu_ms, bubbles.igpu_ms), (Some(1.0), Some(2.0)));
    let experts = summary.expert_selection_distribution.unwrap();
    assert_eq!(experts, [vec![0, 0, 0], vec![1, 0, 2]]);

    let layers = summary.layers.unwrap();
    let layers = layers.iter().map(|l| (l.layer, l.cpu_ms, l.igpu_ms)).collect::<Vec<_>>();
    assert_eq!(layers, [(0, 3.0, 3.0), (1, 2.0, 0.0)]);

    let operations = summary.operations.unwrap();
    let [qkv, ffn] = &operations[..] else { panic!("{operations:?}") };
    assert_eq!((qkv.operation, qkv.time.count, qkv.time.total_ms), ("attention_qkv_proj", 2, 5.0));
    close(qkv.time.max_ms, 3.0);
    assert_eq!((ffn.device, ffn.gbps), (Device::Igpu, 4.0));
}

#[test]
fn one_device_alone_has_no_bubbles_and_no_overlap() {
    let telemetry = Telemetry::start(&params()).unwrap();
    drop(telemetry.recorder().span(Task::new(Operation::LmHead, None, Device::Cpu)));
    let summary = telemetry.finish().unwrap();
    let bubbles = summary.pipeline_bubbles.unwrap();
    assert_eq!((bubbles.cpu_ms, bubbles.igpu_ms), (Some(0.0), None));
    assert_eq!(summary.overlap.unwrap().both_busy_ms, 0.0);
    // Nobody watched the memory, so nothing is said of it.
    assert_eq!((summary.totals.utilization, summary.totals.cpu_igpu_contention), (None, None));
}

#[test]
fn the_json_has_what_clients_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("summary.json");
    let (mut telemetry, _) = session(&TelemetryParams { json: Some(path.clone()), ..params() });
    let recorder = telemetry.recorder();
    let counters = ByteCounters::default();
    let capacity = Some(Capacity { cpu: 1e9, igpu: 1e9, together: 2e9 });
    let monitor_params = MonitorParams { capacity, ..MonitorParams::default() };
    let monitor = Monitor::start(monitor_params, counters.clone(), recorder.clone()).unwrap();
    telemetry.watch_bandwidth(Arc::new(monitor));
    telemetry.watch_token(BandwidthToken::new(TokenParams::default(), recorder.clone()));
    counters.add(Device::Igpu, 1000);
    recorder.queue_depth(4);
    recorder.queue_depth(1);
    let mut span = recorder.span(Task::new(Operation::LmHead, None, Device::Cpu));
    span.fail("no memory");
    drop(span);
    let summary = telemetry.finish().unwrap();
    assert_eq!(summary.totals.failed_packets, 1);

    let json = json(&path);
    for key in KEYS {
        assert!(json[key].is_number(), "{key}: {}", json[key]);
    }
    assert_eq!(json["failed_packets"], 1);
    assert!(json["utilization"].as_f64().unwrap() > 0.0);
    assert_eq!((&json["queue"]["peak"], &json["current_queue_depth"]), (&4.into(), &1.into()));
    assert_eq!(json["bandwidth"]["bandwidth_source"], "counted");
    assert_eq!(json["token"]["permits"], 1);
    assert_eq!(json["devices"][1]["device"], "igpu");
    assert!(json["peak_memory_usage_mb"].as_f64().unwrap() > 1.0);
}

#[test]
fn parts_that_were_not_asked_for_are_left_out() {
    let parts = |metrics: BTreeSet<Metric>| {
        let (telemetry, _) = session(&TelemetryParams { metrics, ..params() });
        let summary = serde_json::to_value(telemetry.finish().unwrap()).unwrap();
        let parts =
            ["operations", "queue", "expert_selection_distribution", "overlap", "pipeline_bubbles"];
        parts.into_iter().filter(|part| summary.get(part).is_some()).collect::<Vec<_>>()
    };
    assert_eq!(parts(BTreeSet::new()), [""; 0]);
    assert_eq!(
        parts(Metric::named(["kernel_duration", "queue_depth"]).unwrap()),
        ["operations", "queue"]
    );
    assert_eq!(parts(Metric::all()).len(), 5);
}

#[test]
fn the_table_has_a_row_for_each_operation() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("operations.csv");
    let (telemetry, _) = session(&TelemetryParams { csv: Some(path.clone()), ..params() });
    let recorder = telemetry.recorder();
    let mut span = recorder.span(Task::new(Operation::LmHead, None, Device::Igpu));
    span.fail("device \"lost\", again");
    drop(span);
    let mut span = recorder.span(Task::new(Operation::LmHead, None, Device::Igpu));
    span.fail("no memory");
    drop(span);
    recorder.level(Gauge::QueueDepth, 1.0);
    assert!(!path.exists(), "a file appears when it is complete");
    telemetry.finish().unwrap();

    let mut reader = csv::Reader::from_path(&path).unwrap();
    assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>().join(","), COLUMNS);
    let rows: Vec<BTreeMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 5);
    let row = &rows[1];
    for (column, value) in [
        ("device", "cpu"),
        ("worker_instance", "1"),
        ("duration_ms", "2.0"),
        ("packet_id", "7"),
        ("layer_idx", "1"),
        ("operation", "attention_qkv_proj"),
        ("success", "true"),
        ("memory_used_mb", "3.0"),
        ("error_message", ""),
    ] {
        assert_eq!(row[column], value, "{column}");
    }
    let (first, second): (jiff::Timestamp, jiff::Timestamp) =
        (rows[0]["timestamp"].parse().unwrap(), row["timestamp"].parse().unwrap());
    assert_eq!((second - first).get_milliseconds() + 1000 * (second - first).get_seconds(), 2);
    assert_eq!((rows[3]["success"].as_str(), rows[3]["layer_idx"].as_str()), ("false", ""));
    assert_eq!(rows[3]["error_message"], "device \"lost\", again");
    assert_eq!(
        (rows[4]["error_message"].as_str(), rows[4]["success"].as_str()),
        ("no memory", "false")
    );
}

/// A trace's entries of one kind.
fn entries<'a>(trace: &'a Value, kind: &str) -> Vec<&'a Value> {
    let all = trace["traceEvents"].as_array().unwrap();
    all.iter().filter(|entry| entry["ph"] == kind).collect()
}

#[test]
fn the_trace_has_tracks_of_devices_token_and_bandwidth() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("trace.json");
    let (telemetry, _) = session(&TelemetryParams { trace: Some(path.clone()), ..params() });
    let recorder = telemetry.recorder();
    let token = BandwidthToken::new(TokenParams::default(), recorder.clone());
    let task = Task::new(Operation::ExpertFfnW2, Some(1), Device::Igpu);
    let mut permit = token.acquire(task, Priority::Decode);
    permit.bytes(5);
    drop(permit);
    recorder.level(Gauge::CpuBandwidth, 12.5);
    telemetry.finish().unwrap();

    let trace = json(&path);
    let names: BTreeMap<u64, &str> = entries(&trace, "M")
        .into_iter()
        .filter(|entry| entry["name"] == "thread_name")
        .map(|entry| (entry["tid"].as_u64().unwrap(), entry["args"]["name"].as_str().unwrap()))
        .collect();
    let slices: Vec<(&str, &str, f64, u64)> = entries(&trace, "X")
        .into_iter()
        .map(|slice| {
            let track = names[&slice["tid"].as_u64().unwrap()];
            let bytes = slice["args"]["bytes"].as_u64().unwrap();
            (track, slice["name"].as_str().unwrap(), slice["dur"].as_f64().unwrap(), bytes)
        })
        .collect();
    assert_eq!(slices[0], ("cpu 0", "attention_qkv_proj", 3000.0, 6_000_000));
    assert_eq!(slices[1], ("cpu 1", "attention_qkv_proj", 2000.0, 3_000_000));
    assert_eq!(slices[2], ("igpu 0", "expert_ffn_w1", 3000.0, 12_000_000));
    let of_token: Vec<_> =
        slices[3..].iter().map(|&(track, name, _, bytes)| (track, name, bytes)).collect();
    assert_eq!(
        of_token,
        [("token: igpu 0", "token wait", 0), ("token: igpu 0", "expert_ffn_w2", 5)]
    );
    let starts = |n: usize| entries(&trace, "X")[n]["ts"].as_f64().unwrap();
    close(starts(1) - starts(0), 2000.0);

    let [counter] = entries(&trace, "C")[..] else { panic!("{trace}") };
    assert_eq!(
        (&counter["name"], &counter["args"]["value"]),
        (&"cpu_bandwidth_gbps".into(), &12.5.into())
    );
}

#[test]
fn a_trace_stays_within_its_limit() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("trace.json");
    let params = TelemetryParams { trace: Some(path.clone()), trace_events: 2, ..params() };
    let (telemetry, _) = session(&params);
    assert_eq!(telemetry.finish().unwrap().trace_events_left_out, 1);
    assert_eq!(entries(&json(&path), "X").len(), 2);
}

#[test]
fn what_does_not_fit_the_ring_is_counted() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 20_000;
    let telemetry = Telemetry::start(&TelemetryParams { ring: 64, ..params() }).unwrap();
    thread::scope(|scope| {
        for worker in 0..WRITERS {
            let recorder = telemetry.recorder();
            scope.spawn(move || {
                let task = Task::new(Operation::RouterLogits, Some(0), Device::Cpu);
                let task = Task { worker: worker as u16, ..task };
                for _ in 0..EACH {
                    recorder.span(task).bytes(3);
                }
            });
        }
        // The reader takes part.
        (0..50).for_each(|_| drop(telemetry.summary()));
    });
    let summary: Summary = telemetry.finish().unwrap();
    let seen = summary.totals.total_packets_processed;
    assert!(seen >= 64 && summary.lost_events > 0, "{seen}, {}", summary.lost_events);
    assert_eq!(seen + summary.lost_events, WRITERS * EACH);
    assert_eq!(summary.devices[0].bytes, 3 * seen);
}

#[test]
fn a_recorder_that_is_off_does_nothing() {
    let recorder = Recorder::off();
    assert!(!recorder.is_on());
    let mut span = recorder.span(Task::new(Operation::LmHead, None, Device::Cpu));
    span.bytes(1);
    span.fail("nobody hears this");
    recorder.queue_depth(3);
    recorder.experts(0, [1]);
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_nothing_stays() {
    let folder = TempDir::new().unwrap();
    let there = folder.path().join("operations.csv");
    let missing = folder.path().join("missing/trace.json");
    let params = TelemetryParams { csv: Some(there), trace: Some(missing.clone()), ..params() };
    let message = Telemetry::start(&params).err().unwrap().to_string();
    assert!(message.contains(missing.to_str().unwrap()), "{message}");
    let csv = Some(folder.path().join("dropped.csv"));
    drop(session(&TelemetryParams { csv, ..self::params() }));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
