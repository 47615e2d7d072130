//! Frames that are anything at all: every message is answered, and the server stays well. `fuzz/` does the same to the
//! parser, for as long as one likes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tandem_golden::stories;

use crate::support::{Running, greedy, ids_of};

/// JSON of any shape, not too large.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "cpu",
            "igpu",
            "float16",
            "embedding",
            "expert_ffn",
            "lm_head",
            "a"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec(("[a-z_]{1,12}", inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Messages that are nearly right: one field is something else.
fn nearly_right() -> impl Strategy<Value = Value> {
    let good = vec![
        json!({"type": "health_check", "id": 1}),
        json!({"type": "cancel", "target": "x"}),
        json!({"type": "get_telemetry"}),
        json!({"type": "get_bandwidth_stats"}),
        json!({"type": "get_state"}),
        json!({"type": "get_trace"}),
        json!({"type": "set_policy", "policy": "static", "enable_pipelining": null}),
        json!({"type": "reload_config", "yaml": "global: {}"}),
        json!({
            "type": "generate", "prompt": "a", "max_tokens": 1, "sampling": {"temperature": 1.0, "top_k": 3}, "stop": ["x"],
            "stream": false, "written_ids": [3],
        }),
        json!({
            "type": "work_packet", "data": {
                "packet_id": 1, "layer_idx": 0, "operation": "router_logits", "input_shape": [1, 256], "input_dtype": "float32",
                "params": {"experts": [[0, 1]]}, "priority": 1, "device_target": "auto",
            },
        }),
    ];
    let keys = vec![
        "type",
        "id",
        "target",
        "policy",
        "yaml",
        "prompt",
        "ids",
        "messages",
        "max_tokens",
        "sampling",
        "stop",
        "written_ids",
        "data",
        "/packet_id",
        "/layer_idx",
        "/operation",
        "/input_shape",
        "/input_dtype",
        "/params",
        "/device_target",
        "/input_data_ptr",
        "/priority",
    ];
    (prop::sample::select(good), prop::sample::select(keys), any_json()).prop_map(
        |(mut message, key, value)| {
            match key.strip_prefix('/') {
                Some(key) if message["data"].is_object() => message["data"][key] = value,
                _ => message[key.trim_start_matches('/')] = value,
            }
            message
        },
    )
}

#[test]
fn every_message_is_answered_whatever_it_is() {
    let server = Running::start();
    let (peer, story) = (server.dealer(), &stories()[0]);
    let frames = prop_oneof![
        vec(vec(any::<u8>(), 0..200), 1..4),
        any_json().prop_map(|json| vec![json.to_string().into_bytes()]),
        (nearly_right(), vec(vec(any::<u8>(), 0..600), 0..2)).prop_map(|(json, more)| [
            vec![json.to_string().into_bytes()],
            more
        ]
        .concat()),
    ];
    let mut runner = TestRunner::new(Config { cases: 1500, ..Config::default() });
    runner
        .run(&frames, |mut frames| {
            // An empty first frame is a delimiter; the last one is never one by itself.
            if frames.iter().all(Vec::is_empty) {
                frames.push(b"{".to_vec());
            }
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            peer.send_raw(&frames);
            // One answer, or a stream that ends.
            loop {
                let answer = peer.socket.recv_multipart(0).expect("an answer");
                let json = answer.iter().find(|frame| !frame.is_empty()).expect("JSON");
                let answer: Value = serde_json::from_slice(json).expect("JSON");
                prop_assert!(
                    ["ok", "success", "error"].contains(&answer["status"].as_str().unwrap())
                );
                if !["begun", "tokens"].contains(&answer["event"].as_str().unwrap_or_default()) {
                    return Ok(());
                }
            }
        })
        .unwrap();
    let answer = server.req().ask(&greedy(1, &story.ids, 5, false));
    assert_eq!(ids_of(&answer["result"]["ids"]), story.greedy[..5]);
}

#[test]
fn bytes_that_are_no_zmtp_hurt_nobody() {
    use std::io::Write;
    let server = Running::start();
    let address = server.address.trim_start_matches("tcp://").to_owned();
    let greeting = |rest: &[u8]| {
        let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
        bytes.extend(b"NULL");
        bytes.resize(64, 0);
        bytes.extend(rest);
        bytes
    };
    // A frame of eight exbibytes, a command of nonsense, no end of more frames.
    let huge = [&[2][..], &[0x7f; 8]].concat();
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        greeting(&[]),
        greeting(&huge),
        greeting(&[4, 200, 1, 2, 3]),
        greeting(&[4, 26, 5, b'R', b'E', b'A', b'D', b'Y', 0xff, 0xff, 0xff, 0xff]),
    ] {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        // The server may hang up at any time.
        let _ = stream.write_all(&bytes);
        let _ = stream.flush();
        drop(stream);
        assert_eq!(server.req().ask(&json!({"type": "health_check"}))["status"], "ok");
    }
}
