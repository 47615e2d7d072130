//! The server's end, and what comes before.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{TestServer, endless, post, read_reply, read_until};

#[test]
fn a_server_that_stops_finishes_what_it_writes_and_takes_nothing_new() {
    let mut server = TestServer::start();
    let mut streamed = server.connect();
    streamed.write_all(post("/v1/completions", &endless(true).to_string()).as_bytes()).unwrap();
    let begin = read_until(&mut streamed, "data: ");
    let mut whole = server.connect();
    whole.write_all(post("/v1/completions", &endless(false).to_string()).as_bytes()).unwrap();
    // Who is connected and asks for nothing, or listens to figures, is no reason to wait.
    let mut idle = server.connect();
    let mut figures = server.connect();
    figures.write_all(b"GET /telemetry/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_until(&mut figures, "data: ");
    server.wait_for_running(2);
    server.stop();
    assert_eq!(read_reply(&mut idle).status, 0);
    read_reply(&mut figures);
    let rest = read_reply(&mut streamed).head;
    assert!(begin.contains("200 OK") && rest.contains("data: [DONE]"), "{rest}");
    let whole = read_reply(&mut whole);
    assert_eq!(whole.json()["usage"]["completion_tokens"], 450);
    assert!(server.stops_within(Duration::from_secs(30)));
    assert!(std::net::TcpStream::connect(server.address).is_err());
}

#[test]
fn a_server_that_stops_does_not_wait_for_ever() {
    let mut server =
        TestServer::limited(|limits| limits.drain_timeout = Duration::from_millis(100));
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = server.connect();
            let request = post("/v1/completions", &endless(false).to_string());
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    while server.engine.load().running == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.stop();
    assert!(server.stops_within(Duration::from_secs(10)));
    drop(asked);
}

#[test]
fn an_answer_that_takes_too_long_ends_with_an_error() {
    let server =
        TestServer::limited(|limits| limits.generation_timeout = Duration::from_millis(50));
    let reply = server.post("/v1/completions", &endless(false));
    assert_eq!((reply.status, reply.code()), (504, json!("timeout")), "{}", reply.body);
    let streamed = server.post("/v1/completions", &endless(true));
    assert_eq!(streamed.status, 200);
    let last = streamed.body.trim_end().lines().last().unwrap();
    assert!(last.starts_with("data: {\"error\":") && last.contains("\"timeout\""), "{last}");
    server.wait_for_running(0);
}

#[test]
fn an_engine_that_has_stopped_is_told() {
    let server = TestServer::start();
    assert_eq!(server.get("/ready").status, 200);
    let mut cut = server.connect();
    cut.write_all(post("/v1/completions", &endless(true).to_string()).as_bytes()).unwrap();
    read_until(&mut cut, "data: ");
    server.engine.shutdown(false).unwrap();
    let rest = read_reply(&mut cut).head;
    assert!(rest.contains("data: {\"error\":") && !rest.contains("[DONE]"), "{rest}");
    let reply = server.post("/v1/completions", &json!({"prompt": "Once"}));
    assert_eq!((reply.status, reply.code()), (503, json!("stopped")));
    assert_eq!((server.get("/ready").status, server.get("/health").status), (503, 200));
    let begun = Instant::now();
    drop(server);
    assert!(begun.elapsed() < Duration::from_secs(10));
}
