//! More than a server can do at a time.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};
use tandem_runtime::EngineOptions;
use tandem_serve::ServerOptions;

use crate::harness::{ENGINE, TestServer, endless, post, read_reply};

fn ask(server: &TestServer, body: &Value) -> TcpStream {
    let mut stream = server.connect();
    stream.write_all(post("/v1/completions", &body.to_string()).as_bytes()).unwrap();
    stream
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_again() {
    let engine = EngineOptions { max_sequences: 1, max_waiting: 2, ..ENGINE };
    let server = TestServer::start_with(ServerOptions::default(), engine);
    let running = ask(&server, &endless(false));
    server.wait_for_running(1);
    let mut waiting: Vec<_> = (0..2).map(|_| ask(&server, &json!({"prompt": "Once"}))).collect();
    while server.engine.load().waiting < 2 {
        std::thread::yield_now();
    }
    let reply = server.post("/v1/completions", &json!({"prompt": "Once"}));
    assert_eq!((reply.status, reply.code()), (503, json!("queue_full")), "{}", reply.body);
    assert!(reply.head.to_lowercase().contains("retry-after: 1"), "{}", reply.head);
    // Streams are refused before they begin.
    assert_eq!(server.post("/v1/completions", &endless(true)).status, 503);
    assert!(server.get("/metrics").body.contains("tandem_texts_total{outcome=\"refused\"} 2"));
    // Who gives up makes room.
    drop(running);
    for stream in &mut waiting {
        assert_eq!(read_reply(stream).status, 200);
    }
    server.assert_answers();
}

/// Of several answers either all are taken up or none.
#[test]
fn answers_that_do_not_all_fit_are_all_refused() {
    let engine = EngineOptions { max_sequences: 1, max_waiting: 2, ..ENGINE };
    let server = TestServer::start_with(ServerOptions::default(), engine);
    let reply = server.post("/v1/completions", &json!({"prompt": "Once", "n": 8}));
    assert_eq!(reply.status, 503, "{}", reply.body);
    server.wait_for_running(0);
    server.assert_answers();
}

/// What is written does not depend on who else is served.
#[test]
fn many_at_a_time_get_what_each_would_get_alone() {
    let server = TestServer::start();
    let body = |n: usize| {
        let prompt = ["Once upon a time", "The dog", "A boy and a girl", "One day"][n % 4];
        json!({"prompt": prompt, "max_tokens": 30, "temperature": 0.8, "seed": n})
    };
    let text = |reply: Value| reply["choices"][0]["text"].as_str().unwrap().to_owned();
    let alone: Vec<_> =
        (0..12).map(|n| text(server.post("/v1/completions", &body(n)).json())).collect();
    let mut together: Vec<_> = (0..12).map(|n| ask(&server, &body(n))).collect();
    for (stream, alone) in together.iter_mut().zip(alone) {
        assert_eq!(text(read_reply(stream).json()), alone);
    }
}
