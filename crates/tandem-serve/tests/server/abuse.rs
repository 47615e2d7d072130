//! What a server must outlive.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{TestServer, endless, post, read_reply, read_until};

#[test]
fn ten_thousand_idle_connections_hold_nobody_up() {
    // Both ends are in this process.
    let files = rlimit::increase_nofile_limit(24_000).unwrap();
    let count = 10_000.min(usize::try_from(files).unwrap().saturating_sub(1_000) / 2);
    assert_eq!(count, 10_000, "the system allows this process {files} files only");
    let server = TestServer::start();
    let idle: Vec<TcpStream> = (0..count).map(|_| server.connect()).collect();
    let open = || {
        let metrics = server.get("/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("tandem_connections "));
        line.unwrap().parse::<usize>().unwrap()
    };
    let begun = Instant::now();
    while open() < count {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} connections", open());
        std::thread::sleep(Duration::from_millis(20));
    }
    server.assert_answers();
    drop(idle);
    server.assert_answers();
}

#[test]
fn who_sends_a_head_or_a_body_byte_by_byte_is_let_go() {
    let server = TestServer::limited(|limits| {
        limits.header_timeout = Duration::from_secs(1);
        limits.body_timeout = Duration::from_secs(1);
    });
    let drip = |beginning: &str| {
        let mut stream = server.connect();
        stream.write_all(beginning.as_bytes()).unwrap();
        let mut writer = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            while writer.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        stream
    };
    let mut heads: Vec<TcpStream> =
        (0..50).map(|_| drip("GET /health HTTP/1.1\r\nX-Slow: ")).collect();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 100000\r\n\r\n{\"prompt\":\"";
    let mut bodies: Vec<TcpStream> = (0..50).map(|_| drip(head)).collect();
    server.assert_answers();
    let begun = Instant::now();
    for stream in &mut heads {
        assert_ne!(read_reply(stream).status, 200);
    }
    for stream in &mut bodies {
        let reply = read_reply(stream);
        assert!([0, 408].contains(&reply.status), "{reply:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    server.assert_answers();
}

#[test]
fn oversized_requests_are_refused_early() {
    let server = TestServer::limited(|limits| limits.body_bytes = 10_000);
    let long = json!({"prompt": "x".repeat(10_000)});
    assert_eq!(server.post("/v1/completions", &long).status, 413);
    // The body never comes, and need not.
    let announced = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                     Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{";
    assert_eq!(server.raw(announced).status, 413);
    // No length is announced.
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    let chunked = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                   Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(server.raw(&format!("{chunked}{}", chunk.repeat(4))).status, 413);
    let header = format!("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    assert_eq!(server.raw(&header).status, 431);
    let many = "X: y\r\n".repeat(200);
    assert_eq!(server.raw(&format!("GET /health HTTP/1.1\r\n{many}\r\n")).status, 431);
    // As long as the context allows, and no longer.
    let words = json!({"prompt": "a b c d e ".repeat(200)});
    let reply = server.post("/v1/completions", &words);
    assert_eq!((reply.status, reply.code()), (400, json!("context_length_exceeded")));
    server.assert_answers();
}

#[test]
fn what_is_no_http_or_no_json_is_refused() {
    let server = TestServer::start();
    let tls = "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}";
    for garbage in [
        tls,
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let status = server.raw(garbage).status;
        assert!([0, 400, 505].contains(&status), "{garbage:?}: {status}");
    }
    let two_lengths = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}";
    assert_eq!(server.raw(two_lengths).status, 400);
    let both = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\
                Content-Type: application/json\r\nConnection: close\r\n\r\nzz\r\n";
    assert!((400..500).contains(&server.raw(both).status));
    let deep = "[".repeat(100_000);
    for body in
        ["", "{", "null", "[]", "{\"prompt\":}", "{\"prompt\":\"\\ud800\"}", "nonsense", &*deep]
    {
        let reply = server.raw(&post("/v1/completions", body));
        assert_eq!(reply.status, 400, "{body:.20}: {reply:?}");
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    let not_text = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
                     Content-Length: 14\r\n\r\n{\"content\":\"\xff\"";
    let mut stream = server.connect();
    stream.write_all(not_text).unwrap();
    assert_eq!(read_reply(&mut stream).status, 400);
    for (path, status) in
        [("/nothing", 404), ("/../etc/passwd", 404), ("/v1/chat/completions", 405)]
    {
        let reply = server.get(path);
        assert_eq!(reply.status, status, "{path}");
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    server.assert_answers();
}

#[test]
fn who_goes_away_ends_the_text() {
    let server = TestServer::start();
    // In the middle of a stream, while the whole answer is awaited, and with one half of the connection.
    for (streams, how) in
        [(true, Shutdown::Both), (false, Shutdown::Both), (false, Shutdown::Write)]
    {
        let mut stream = server.connect();
        stream
            .write_all(post("/v1/completions", &endless(streams).to_string()).as_bytes())
            .unwrap();
        if streams {
            read_until(&mut stream, "data: ");
        }
        server.wait_for_running(1);
        stream.shutdown(how).unwrap();
        server.wait_for_running(0);
    }
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("tandem_texts_total{outcome=\"cancelled\"} 3"), "{metrics}");
    server.assert_answers();
}

#[test]
fn who_does_not_read_is_let_go() {
    let server = TestServer::limited(|limits| limits.write_timeout = Duration::from_secs(1));
    let mut stream = server.connect();
    // Figures in a stream are as long as one likes.
    stream.write_all(b"GET /telemetry/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_until(&mut stream, "data: ");
    // A long pipeline of requests whose answers nobody reads fills what the system holds for us.
    let mut deaf = server.connect();
    deaf.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let begun = Instant::now();
    let mut failed = false;
    while begun.elapsed() < Duration::from_secs(30) && !failed {
        failed = deaf.write_all(request.as_bytes()).is_err();
    }
    assert!(failed, "the server goes on taking requests whose answers nobody reads");
    server.assert_answers();
}
