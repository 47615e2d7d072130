//! From a session's files to plots, as `tandem report` makes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tandem_report::{LastPass, Report, Session};
use tandem_runtime::telemetry::{Task, Telemetry, TelemetryParams};
use tandem_runtime::{Device, Operation};
use tempfile::TempDir;

const LAYERS: u16 = 3;
const EXPERTS: usize = 4;
const PLOTS: [&str; 5] = ["timeline", "devices", "operations", "layers", "experts"];

/// Files of a session of two passes: attention and an expert's matrix on the CPU, the other one on the iGPU, lm_head on
/// both.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let at = |name| Some(folder.path().join(name));
        let params = TelemetryParams {
            json: at("session.json"),
            csv: at("rows.csv"),
            trace: at("trace.json"),
            ..TelemetryParams::new(usize::from(LAYERS), EXPERTS)
        };
        let telemetry = Telemetry::start(&params).unwrap();
        let recorder = telemetry.recorder();
        let begin = Instant::now();
        let mut at = 0;
        let mut record = |operation, layer, device, ms| {
            let from = begin + Duration::from_millis(at);
            let until = from + Duration::from_millis(ms);
            recorder.record(Task::new(operation, layer, device), from, until, 1_000_000);
            // What is on the iGPU runs while the CPU goes on.
            at += if device == Device::Cpu { ms } else { 0 };
        };
        for _ in 0..2 {
            record(Operation::Embedding, None, Device::Cpu, 1);
            for layer in 0..LAYERS {
                record(Operation::ExpertFfnW2, Some(layer), Device::Igpu, 3);
                record(Operation::AttentionQkvProj, Some(layer), Device::Cpu, 2);
                record(Operation::ExpertFfnW1, Some(layer), Device::Cpu, 2);
                recorder.experts(usize::from(layer), [usize::from(layer), 3]);
            }
            record(Operation::LmHead, None, Device::Igpu, 2);
            record(Operation::LmHead, None, Device::Cpu, 2);
        }
        std::thread::sleep(Duration::from_millis(at));
        telemetry.finish().unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Texts and filled rectangles of a plot.
fn contents(svg: &Path) -> (Vec<String>, Vec<String>) {
    let text = fs::read_to_string(svg).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    let all = || document.descendants();
    let texts = all().filter(|n| n.has_tag_name("text")).map(|node| {
        node.descendants().filter_map(|n| n.text().filter(|_| n.is_text())).collect::<String>()
    });
    let fills = all().filter(|n| n.has_tag_name("rect")).filter_map(|n| n.attribute("fill"));
    (texts.collect(), fills.map(str::to_owned).collect())
}

fn count(fills: &[String], color: &str) -> usize {
    fills.iter().filter(|fill| *fill == color).count()
}

const CPU: &str = "#2b6cb0";
const IGPU: &str = "#dd6b20";

#[test]
fn plots_show_the_session() {
    let files = Files::new();
    let session = Session::read(&files.path("session.json")).unwrap();
    let pass = LastPass::read(&files.path("trace.json")).unwrap();
    let report = Report::draw(&session, Some(&pass)).unwrap();
    assert!(report.left_out().is_empty(), "{:?}", report.left_out());
    let out = files.path("out/of/it");
    let paths = report.write(&out).unwrap();
    assert_eq!(paths.len(), 2 * PLOTS.len() + 1);

    // One rectangle for each operation of the last pass (and one of the legend for each device).
    let (texts, fills) = contents(&out.join("timeline.svg"));
    let layers = usize::from(LAYERS);
    assert_eq!(count(&fills, CPU), 1 + 2 * layers + 1 + 1, "{fills:?}");
    assert_eq!(count(&fills, IGPU), layers + 1 + 1, "{fills:?}");
    for name in ["attention_qkv_proj", "expert_ffn_w1", "expert_ffn_w2", "lm_head", "embedding"] {
        assert!(texts.iter().any(|text| text == name), "{name} in {texts:?}");
    }
    let (texts, fills) = contents(&out.join("operations.svg"));
    assert!(texts.iter().any(|text| text == "expert_ffn_w2"), "{texts:?}");
    // Embedding, q/k/v, w1 and lm_head on the CPU; w2 and lm_head on the iGPU. Bars of no length may be there, too.
    assert!(count(&fills, CPU) > 4 && count(&fills, IGPU) > 2, "{fills:?}");
    let (texts, _) = contents(&out.join("layers.svg"));
    assert!(texts.iter().any(|text| text == "layer 2"), "{texts:?}");
    let (texts, fills) = contents(&out.join("devices.svg"));
    assert!(texts.iter().any(|text| text == "igpu") && count(&fills, IGPU) >= 2, "{texts:?}");
    let (texts, fills) = contents(&out.join("experts.svg"));
    for name in ["layer 0", "layer 2", "0", "3"] {
        assert!(texts.iter().any(|text| text == name), "{name} in {texts:?}");
    }
    assert!(fills.len() >= layers * EXPERTS, "a cell for each expert of each layer: {fills:?}");

    for name in PLOTS {
        let file =
            std::io::BufReader::new(fs::File::open(out.join(format!("{name}.png"))).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert!(info.width > 1000 && info.height > 200, "{name}: {} x {}", info.width, info.height);
        let colors: std::collections::HashSet<&[u8]> =
            pixels.chunks(info.color_type.samples()).collect();
        assert!(colors.len() > 8, "{name}: {} colours", colors.len());
    }
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(page.matches("<img src=\"data:image/svg+xml;base64,").count(), PLOTS.len());
    assert!(page.contains("<td>attention_qkv_proj</td><td>cpu</td><td>6</td>"), "{page}");
}

#[test]
fn rows_and_trace_tell_of_the_same_pass() {
    let files = Files::new();
    let from_trace = LastPass::read(&files.path("trace.json")).unwrap();
    let from_rows = LastPass::read(&files.path("rows.csv")).unwrap();
    assert!(from_trace.is_whole && from_rows.is_whole);
    let key = |pass: &LastPass| {
        let mut slices: Vec<_> = pass
            .slices
            .iter()
            .map(|s| (s.operation.clone(), s.layer, s.device.clone(), s.duration_ms.to_bits()))
            .collect();
        slices.sort();
        slices
    };
    assert_eq!(key(&from_trace), key(&from_rows));
    assert_eq!(from_trace.slices.len(), 3 * usize::from(LAYERS) + 3);
    assert!((from_trace.duration_ms() - 15.0).abs() < 0.01, "{}", from_trace.duration_ms());
}

#[test]
fn what_a_session_lacks_is_left_out_and_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("session.json");
    fs::write(&path, r#"{"started":"","duration_ms":0,"total_packets_processed":0,"devices":[]}"#)
        .unwrap();
    let report = Report::draw(&Session::read(&path).unwrap(), None).unwrap();
    assert_eq!(report.left_out().len(), PLOTS.len());
    let paths = report.write(folder.path()).unwrap();
    assert_eq!(paths, [folder.path().join("report.html")]);
}

#[test]
fn bad_files_are_refused_in_one_line() {
    let files = Files::new();
    let good = fs::read_to_string(files.path("session.json")).unwrap();
    let trace = fs::read_to_string(files.path("trace.json")).unwrap();
    let bad = files.path("bad.json");
    let cases = [
        (String::new(), "EOF while parsing"),
        ("\u{0}\u{1}".to_owned(), "expected value"),
        ("[]".to_owned(), "line 1"),
        (good[..good.len() / 2].to_owned(), "EOF while parsing"),
        (trace.clone(), "missing field"),
        (good.replace("\"duration_ms\":", "\"duration_ms\": -1, \"_\":"), "duration_ms"),
        (good.replace("\"busy_ms\":", "\"busy_ms\": 1e300, \"_\":"), "devices[0].busy_ms"),
        (
            good.replace(
                "\"total_packets_processed\":",
                "\"total_packets_processed\": \"x\", \"_\":",
            ),
            "invalid type",
        ),
        (
            good.replace(
                "\"expert_selection_distribution\":",
                "\"expert_selection_distribution\": [[1],[1,2]], \"_\":",
            ),
            "expert_selection_distribution[1]",
        ),
    ];
    for (content, part) in cases {
        fs::write(&bad, &content).unwrap();
        let message = Session::read(&bad).unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("bad.json"), "{part}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    for (content, part) in [
        (trace[..trace.len() / 2].to_owned(), "EOF"),
        (good, "missing field `traceEvents`"),
        ("{\"traceEvents\":[]}".to_owned(), "at least one that ran"),
        (trace.replace("\"dur\":", "\"dur\":-"), "ms for -"),
    ] {
        fs::write(&bad, &content).unwrap();
        let message = LastPass::read(&bad).unwrap_err().to_string();
        assert!(message.contains(part) && message.lines().count() == 1, "{part}: {message}");
    }
    let rows = fs::read_to_string(files.path("rows.csv")).unwrap();
    let bad = files.path("bad.csv");
    for (content, part) in [
        ("a,b\n1,2\n".to_owned(), "row 2"),
        (rows.replace('T', "?"), "row 2"),
        (rows.lines().next().unwrap().to_owned(), "at least one that ran"),
    ] {
        fs::write(&bad, &content).unwrap();
        let message = LastPass::read(&bad).unwrap_err().to_string();
        assert!(message.contains(part) && message.lines().count() == 1, "{part}: {message}");
    }
}

#[test]
fn names_from_a_file_are_text_and_nothing_else() {
    let files = Files::new();
    let path = files.path("session.json");
    let evil = r#"</text><script>alert(1)</script>\u0001&\"'"#;
    let text = fs::read_to_string(&path).unwrap().replace("lm_head", evil);
    fs::write(&path, text).unwrap();
    let out = files.path("out");
    Report::draw(&Session::read(&path).unwrap(), None).unwrap().write(&out).unwrap();
    let (texts, _) = contents(&out.join("operations.svg"));
    assert!(texts.iter().any(|text| text.contains("<script>")), "shown as it is: {texts:?}");
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
}

/// Sessions at the edges of what is taken: nothing, one of each, all alike, very much.
#[test]
fn extreme_sessions_are_drawn() {
    let folder = TempDir::new().unwrap();
    let (json, trace) = (folder.path().join("session.json"), folder.path().join("trace.json"));
    for time in [0.0, 1e-9, 1.0, 9e14] {
        for many in [1, 3, 300] {
            let operation = |n: usize| {
                serde_json::json!({
                    "operation": format!("operation_{n} $x^2$ {}", "\u{1f409}".repeat(n % 60)), "device": if n % 2 == 0 { "cpu" } else { "igpu" },
                    "count": u64::MAX, "total_ms": time, "mean_ms": time, "p99_ms": time, "gbps": 1e8,
                })
            };
            let layer = |n: usize| serde_json::json!({"layer": n, "cpu_ms": time, "igpu_ms": time});
            let slice = |n: usize| serde_json::json!({"ph": "X", "cat": "compute", "name": format!("operation_{n}"), "tid": 1, "ts": time, "dur": time, "args": {}});
            let name = serde_json::json!({"ph": "M", "name": "thread_name", "tid": 1, "args": {"name": "cpu 0"}});
            let session = serde_json::json!({
                "started": "2026-11-24T00:00:00Z", "duration_ms": time, "total_packets_processed": u64::MAX,
                "devices": [{"device": "cpu", "busy_ms": time}, {"device": "igpu", "busy_ms": time}],
                "operations": (0..many).map(operation).collect::<Vec<_>>(),
                "layers": (0..many).map(layer).collect::<Vec<_>>(),
                "expert_selection_distribution": vec![vec![u64::MAX; many]; many],
                "overlap": {"both_busy_ms": time},
            });
            let events: Vec<_> = std::iter::once(name).chain((0..many).map(slice)).collect();
            fs::write(&json, session.to_string()).unwrap();
            fs::write(&trace, serde_json::json!({"traceEvents": events}).to_string()).unwrap();
            let session = Session::read(&json).unwrap();
            let pass = LastPass::read(&trace).unwrap();
            let report = Report::draw(&session, Some(&pass)).unwrap();
            let left_out = usize::from(time == 0.0);
            assert_eq!(report.left_out().len(), left_out, "{time} {many}: {:?}", report.left_out());
        }
    }
}
