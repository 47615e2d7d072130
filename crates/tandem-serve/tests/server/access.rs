//! Who may ask.

use serde_json::json;
use tandem_serve::ServerOptions;

use crate::harness::{ENGINE, TestServer};

const GUARDED: [&str; 7] = [
    "/v1/models",
    "/props",
    "/metrics",
    "/telemetry",
    "/telemetry/stream",
    "/trace",
    "/dashboard/state",
];

fn with_headers(server: &TestServer, path: &str, headers: &str) -> crate::harness::Reply {
    server.raw(&format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"))
}

#[test]
fn with_keys_everything_of_worth_wants_one() {
    let api_keys = vec!["right-key".to_owned(), "other-key".to_owned()];
    let server = TestServer::start_with(ServerOptions { api_keys, ..Default::default() }, ENGINE);
    for path in GUARDED {
        for headers in ["", "Authorization: Bearer wrong-key\r\n", "Authorization: right-key\r\n"] {
            let reply = with_headers(&server, path, headers);
            assert_eq!((reply.status, reply.code()), (401, json!("invalid_api_key")), "{path}");
            assert!(
                reply.head.to_lowercase().contains("www-authenticate: bearer"),
                "{}",
                reply.head
            );
        }
    }
    for path in ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"] {
        assert_eq!(server.post(path, &json!({})).status, 401, "{path}");
    }
    for key in ["right-key", "other-key"] {
        let reply =
            with_headers(&server, "/v1/models", &format!("Authorization: Bearer {key}\r\n"));
        assert_eq!(reply.status, 200);
    }
    for path in ["/", "/health", "/ready", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn without_keys_no_page_can_have_its_name_point_here() {
    let allowed_hosts = vec!["tandem.lan".to_owned()];
    let options = ServerOptions { allowed_hosts, ..Default::default() };
    let server = TestServer::start_with(options, ENGINE);
    let status =
        |host: &str| with_headers(&server, "/v1/models", &format!("Host: {host}\r\n")).status;
    assert_eq!(status("localhost"), 200);
    assert_eq!(status(&server.address.to_string()), 200);
    assert_eq!(status("tandem.lan"), 200);
    assert_eq!(status("evil.example"), 421);
}

#[test]
fn pages_of_other_origins_may_call_only_where_that_is_wanted() {
    let preflight = |server: &TestServer, origin: &str| {
        let head = format!(
            "OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: GET\r\n\r\n"
        );
        server.raw(&head).head.to_lowercase()
    };
    let server = TestServer::start();
    assert!(!preflight(&server, "https://a.example").contains("access-control-allow-origin"));
    // A page may send this without asking first.
    let simple = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                  Content-Type: text/plain\r\nContent-Length: 15\r\n\r\n{\"prompt\":\"a\"} ";
    assert_eq!(server.raw(simple).status, 415);
    let cors_origins = vec!["https://a.example".to_owned()];
    let server =
        TestServer::start_with(ServerOptions { cors_origins, ..Default::default() }, ENGINE);
    let head = preflight(&server, "https://a.example");
    assert!(head.contains("access-control-allow-origin: https://a.example"), "{head}");
    assert!(!preflight(&server, "https://b.example").contains("access-control-allow-origin"));
}
