//! Figures, and the document that says what there is.

use std::io::Write;

use serde_json::{Value, json};

use crate::harness::{TestServer, read_until};

#[test]
fn figures_are_told_in_every_form() {
    let server = TestServer::start();
    let reply = server.post("/v1/completions", &json!({"prompt": "Once", "max_tokens": 9}));
    let used = reply.json()["usage"].clone();
    let metrics = server.get("/metrics");
    assert!(metrics.head.contains("application/openmetrics-text"), "{}", metrics.head);
    let metric = |name: &str| {
        let line = metrics.body.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {}", metrics.body))
            .trim()
            .parse::<f64>()
            .unwrap()
    };
    assert_eq!(
        metric("tandem_generated_tokens_total"),
        used["completion_tokens"].as_f64().unwrap()
    );
    assert_eq!(metric("tandem_prompt_tokens_total"), used["prompt_tokens"].as_f64().unwrap());
    assert_eq!(metric("tandem_first_token_seconds_count"), 1.0);
    assert_eq!(
        metric("tandem_between_tokens_seconds_count"),
        used["completion_tokens"].as_f64().unwrap() - 1.0
    );
    assert!(metric("tandem_resident_memory_bytes") > 1e7);
    assert!(metrics.body.ends_with("# EOF\n"));
    let asked = "tandem_requests_total{path=\"/v1/completions\",method=\"POST\",status=\"200\"} 1";
    assert!(metrics.body.contains(asked), "{}", metrics.body);

    let telemetry = server.get("/telemetry").json();
    for key in [
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
    ] {
        assert!(telemetry.get(key).is_some(), "no {key} in {telemetry}");
    }
    assert!(telemetry["cpu_packets"].as_u64().unwrap() > 100, "{telemetry}");

    let trace = server.get("/trace").json();
    assert!(trace["traceEvents"].as_array().unwrap().len() > 100);
}

#[test]
fn the_dashboard_is_told_what_its_page_shows() {
    let server = TestServer::start();
    server.post("/v1/completions", &json!({"prompt": "Once upon a time", "max_tokens": 20}));
    let state = server.get("/dashboard/state").json();
    check_state(&state);
    let mut stream = server.connect();
    stream.write_all(b"GET /telemetry/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let text = read_until(&mut stream, "}\n\n");
    let data = text.split("data: ").nth(1).unwrap().lines().next().unwrap();
    check_state(&serde_json::from_str(data).unwrap());
    let page = server.get("/");
    assert!(
        page.head.contains("text/html")
            && page.head.to_lowercase().contains("content-security-policy")
    );
    // It works without a network.
    assert!(
        !page.body.contains("src=\"http") && !page.body.contains("@import"),
        "something is loaded from elsewhere"
    );
}

fn check_state(state: &Value) {
    assert_eq!(state["model"]["id"], "stories");
    assert_eq!(state["tokens"]["generated_total"], 20);
    assert_eq!(state["requests"]["completed"], 1);
    assert_eq!(state["requests"]["max_running"], 4);
    let counts = state["experts"]["counts"].as_array().unwrap();
    assert_eq!((counts.len(), counts[0].as_array().unwrap().len()), (6, 16));
    // Each token uses two experts of each layer; the last one has not gone through the model.
    let prompt = state["tokens"]["prompt_total"].as_u64().unwrap();
    let used: u64 = counts[3].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(used, 2 * (prompt + 19), "{state}");
    let spans = state["timeline"]["spans"].as_array().unwrap();
    assert!(spans.len() > 6 * 5, "{}", spans.len());
    assert!(spans.iter().all(|span| span["device"] == "cpu" && span["duration_ms"].is_number()));
    let steps = state["plan"][0]["steps"].as_array().unwrap();
    assert!(
        steps.iter().all(|step| step["why"].as_str().is_some_and(|why| !why.is_empty())),
        "{steps:?}"
    );
    assert_eq!(state["bandwidth"]["source"], "operations");
}

#[test]
fn the_document_has_every_path_and_no_answer_names_a_path_of_the_host() {
    let server = TestServer::start();
    let document = server.get("/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            // Whatever is wrong with it: it is there.
            let reply = match &**method {
                "get" if path == "/telemetry/stream" => continue,
                "get" => server.get(path),
                _ => server.post(path, &json!({"nonsense": 1})),
            };
            let known = reply.status != 405 && (reply.status != 404 || path.contains('{'));
            assert!(known, "{method} {path}: {}", reply.status);
            for text in [&reply.head, &reply.body] {
                assert!(
                    !text.contains(env!("CARGO_MANIFEST_DIR"))
                        && !text.contains("stories-17m.gguf"),
                    "{text}"
                );
            }
        }
    }
    assert_eq!(paths.len(), 16, "{:?}", paths.keys());
}
