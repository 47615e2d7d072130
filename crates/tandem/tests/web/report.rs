//! `tandem report` of a session of the demo model.

use std::fs;

use tandem_testkit::scratch;

use crate::{Server, tandem};

const PLOTS: [&str; 5] = ["timeline", "devices", "operations", "layers", "experts"];

#[test]
fn a_session_of_the_demo_model_is_drawn() {
    let folder = scratch("report");
    let at = |name: &str| folder.path().join(name);
    let files = ["--telemetry", "session.json", "--trace", "trace.json"];
    let files = files.map(|part| {
        if part.starts_with('-') { part.to_owned() } else { at(part).display().to_string() }
    });
    let server = Server::start(&files.each_ref().map(String::as_str));
    let ask = ureq::post(format!("{}/v1/completions", server.url))
        .header("Content-Type", "application/json");
    ask.send(r#"{"model":"stories","prompt":"Once upon a time","max_tokens":24,"temperature":0}"#)
        .unwrap();
    server.stop();
    let report = tandem()
        .arg("report")
        .arg(at("session.json"))
        .args(["--trace".as_ref(), at("trace.json").as_os_str()])
        .args(["-o".as_ref(), at("out").as_os_str()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&report.stderr);
    assert!(report.status.success() && said.is_empty(), "{said}");
    for plot in PLOTS {
        let svg = fs::read_to_string(at("out").join(format!("{plot}.svg"))).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let marks = document.descendants().filter(|node| node.has_tag_name("rect")).count();
        // The demo model has 6 layers of 16 experts, and a pass 75 operations.
        let least = match plot {
            "experts" => 6 * 16,
            "timeline" => 6 * 10,
            "operations" => 12,
            "layers" => 6,
            _ => 2,
        };
        assert!(marks >= least, "{plot}: {marks} marks, fewer than {least}");
        assert!(fs::read(at("out").join(format!("{plot}.png"))).unwrap().starts_with(b"\x89PNG"));
    }
    let page = fs::read_to_string(at("out").join("report.html")).unwrap();
    assert_eq!(page.matches("<figure>").count(), PLOTS.len());
    assert!(page.contains("lm_head") && !page.contains("http://"));
}

#[test]
fn what_is_no_session_is_refused_and_nothing_is_written() {
    let folder = scratch("report-bad");
    let session = folder.path().join("session.json");
    for content in ["", "{", "[1,2]", "{\"started\": 3}"] {
        fs::write(&session, content).unwrap();
        let out = folder.path().join("out");
        let report = tandem().arg("report").arg(&session).arg("-o").arg(&out).output().unwrap();
        let said = String::from_utf8(report.stderr).unwrap();
        assert_eq!((report.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(
            said.contains("session.json") && said.contains("expected a telemetry summary"),
            "{said}"
        );
        assert!(!out.exists(), "{content:?}");
    }
}
