//! Every message, by REQ and by DEALER.

use serde_json::{Value, json};
use tandem_golden::stories;

use crate::support::{OPTIONS, Running, greedy, ids_of, until};

#[test]
fn short_questions_have_short_answers() {
    let server = Running::start();
    for peer in [server.req(), server.dealer()] {
        let health = peer.ask(&json!({"type": "health_check", "id": "well?"}));
        assert_eq!(health["id"], "well?");
        assert_eq!(health["status"], "ok");
        assert_eq!(health["igpu_available"], false);
        assert_eq!(health["model"]["context"], OPTIONS.context);
        assert_eq!(health["devices"].as_array().unwrap().len(), 1);

        peer.ask(&json!({"type": "generate", "prompt": "One day", "max_tokens": 2}));
        let telemetry = peer.ask(&json!({"type": "get_telemetry"}));
        assert!(telemetry["telemetry"]["total_packets_processed"].as_u64().unwrap() > 0);
        let bandwidth = peer.ask(&json!({"type": "get_bandwidth_stats", "id": 3}));
        assert_eq!((&bandwidth["id"], &bandwidth["status"]), (&json!(3), &json!("success")));
        assert!(bandwidth["rates"]["generated_per_s"].as_f64().is_some(), "{bandwidth}");
        let state = &peer.ask(&json!({"type": "get_state"}))["state"];
        assert_eq!(state["expert_counts"][0].as_array().unwrap().len(), 16);
        assert!(state["timeline"]["spans"].as_array().unwrap().len() > 30, "{state}");
        assert_eq!(state["plan"][0]["name"], "cpu");
        let trace = peer.ask(&json!({"type": "get_trace", "id": "t"}));
        assert_eq!(trace["id"], "t");
        assert!(trace["trace"]["traceEvents"].as_array().unwrap().len() > 100);

        for policy in ["static", "adaptive", "bandwidth_aware"] {
            let answer = peer.ask(&json!({"type": "set_policy", "policy": policy}));
            assert_eq!(answer["policy"], policy);
            assert_eq!(peer.ask(&json!({"type": "health_check"}))["policy"], policy);
            for pipelining in [false, true] {
                let set = json!({"type": "set_policy", "policy": policy, "enable_pipelining": pipelining});
                assert_eq!(peer.ask(&set)["enable_pipelining"], pipelining);
                // Who does not say leaves it.
                let answer = peer.ask(&json!({"type": "set_policy", "policy": policy}));
                assert_eq!(answer["enable_pipelining"], pipelining);
            }
        }
        let none = peer.ask(&json!({"type": "cancel"}));
        assert_eq!(none["cancelled"], 0);
    }
}

#[test]
fn texts_are_the_reference_s_in_one_answer_and_in_a_stream() {
    let server = Running::start();
    let (req, dealer) = (server.req(), server.dealer());
    for story in stories() {
        let wanted = |stream| greedy("s", &story.ids, story.greedy.len(), stream);
        // REQ gets one answer, whatever it asks for.
        for stream in [false, true] {
            let answer = req.ask(&wanted(stream));
            assert_eq!(answer["event"], "finished");
            assert_eq!(ids_of(&answer["result"]["ids"]), story.greedy);
        }
        dealer.send(&wanted(true));
        let begun = dealer.answer();
        assert_eq!(ids_of(&begun["prompt_ids"]), story.ids);
        let (ids, text, summary) = dealer.stream(&json!("s"));
        assert_eq!(ids, story.greedy);
        assert_eq!(ids_of(&summary["ids"]), ids);
        assert_eq!(summary["text"], text);
        assert_eq!(summary["prompt_tokens"], story.ids.len());
        assert_eq!(summary["finish_reason"], "length");
    }
}

#[test]
fn prompts_may_be_text_ids_or_a_conversation() {
    let server = Running::start();
    let peer = server.dealer();
    let base = json!({"type": "generate", "max_tokens": 12, "sampling": {"temperature": 0}, "stream": true});
    let with = |fields: Value| {
        let mut message = base.clone();
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        peer.send(&message);
        let begun = peer.answer();
        let (ids, text, _) = peer.stream(&Value::Null);
        (ids_of(&begun["prompt_ids"]), ids, text)
    };
    let (prompt_ids, ids, text) = with(json!({"prompt": "Once upon a time"}));
    let same = with(json!({"ids": prompt_ids, "continues_prompt": true}));
    assert_eq!(same, (prompt_ids.clone(), ids.clone(), text.clone()));
    let messages = json!([{"role": "user", "content": "Tell me a story."}]);
    let (chat_ids, _, answer) = with(json!({"messages": messages}));
    assert!(chat_ids.len() > 4 && !answer.is_empty());
    // What another has written is not told again, and stop strings across the seam count.
    for cut in [1, 5, 11] {
        let (_, rest, more) = with(json!({
            "ids": prompt_ids, "continues_prompt": true, "written_ids": ids[..cut], "max_tokens": 12 - cut,
        }));
        assert_eq!(rest, ids[cut..]);
        assert!(text.ends_with(&more) && more.len() < text.len(), "{more:?} of {text:?}");
    }
    let stop = text.trim().split(' ').nth(3).unwrap();
    let (_, _, cut) = with(json!({"prompt": "Once upon a time", "stop": [stop]}));
    assert_eq!(cut, text.split_once(stop).unwrap().0);
}

#[test]
fn cancelled_texts_end_and_others_go_on() {
    let server = Running::start();
    let (peer, other) = (server.dealer(), server.dealer());
    let story = &stories()[0];
    peer.send(&greedy("long", &story.ids, 400, true));
    other.send(&greedy("long", &story.ids, story.greedy.len(), true));
    until("it writes", || peer.answer()["event"] == "tokens");
    peer.send(&json!({"type": "cancel", "id": "c", "target": "nobody"}));
    peer.send(&json!({"type": "cancel", "id": "c", "target": "long"}));
    let mut cancelled = Vec::new();
    let reason = loop {
        let answer = peer.answer();
        match answer["type"].as_str().unwrap() {
            "cancel" => cancelled.push(answer["cancelled"].as_u64().unwrap()),
            _ if answer["event"] == "finished" => break answer["result"]["finish_reason"].clone(),
            _ => {}
        }
    };
    assert_eq!((reason, cancelled), (json!("cancelled"), vec![0, 1]));
    // The same id, but another client's.
    assert_eq!(other.stream(&json!("long")).0, story.greedy);
    // Before the engine has begun with it.
    peer.send(&greedy("at once", &story.ids, 400, false));
    assert_eq!(peer.ask(&json!({"type": "cancel", "id": 1}))["cancelled"], 1);
    assert_eq!(peer.answer()["result"]["finish_reason"], "cancelled");
}

#[test]
fn what_is_wrong_is_answered_in_one_line() {
    let server = Running::start();
    let story = &stories()[0];
    for peer in [server.req(), server.dealer()] {
        let error = |message: Value| peer.error(&[message.to_string().as_bytes()]);
        for (message, expected) in [
            (json!({"type": "generate"}), "generate: expected one of prompt, ids and messages"),
            (
                json!({"type": "generate", "prompt": "a", "ids": [1]}),
                "generate: expected one of prompt, ids and messages",
            ),
            (
                json!({"type": "generate", "ids": []}),
                "the prompt is empty: the model needs at least one token to continue from",
            ),
            (
                json!({"type": "generate", "ids": [1, 99_999]}),
                "token id 99999: expected less than the vocabulary size ",
            ),
            (
                json!({"type": "generate", "ids": vec![1; 481]}),
                "the prompt has 481 tokens, but the context holds only 480",
            ),
            (
                json!({"type": "generate", "ids": [-1]}),
                "generate: invalid value: integer `-1`, expected u32",
            ),
            (
                json!({"type": "generate", "prompt": "a", "sampling": {"temperature": -1}}),
                "sampling: temperature: expected 0 or more, found -1",
            ),
            (
                json!({"type": "generate", "prompt": "a", "sampling": {"temprature": 1}}),
                "generate: unknown field `temprature`",
            ),
            (
                json!({"type": "generate", "prompt": "a", "stop": ""}),
                "stop: expected strings of 1 to 1024 bytes, found one of 0",
            ),
            (
                json!({"type": "generate", "prompt": "a", "stop": vec!["x"; 65]}),
                "stop: expected at most 64, found 65",
            ),
            (
                json!({"type": "generate", "prompt": "a", "max_tokens": -1}),
                "generate: invalid value: integer `-1`, expected usize",
            ),
            (
                json!({"type": "set_policy", "policy": "best"}),
                "set_policy: policy: expected static, bandwidth_aware, adaptive, found 'best'",
            ),
            (json!({"type": "hello"}), "type: expected one of health_check, work_packet, generate"),
            (json!(["health_check"]), "a message: expected a JSON object, found an array"),
        ] {
            let found = error(message);
            assert!(found.starts_with(expected) && !found.contains('\n'), "{found}");
        }
        assert!(peer.error(&[b"{"]).starts_with("a message: not valid JSON"));
        assert!(peer.error(&[b"\xff\xfe"]).starts_with("a message: not valid JSON"));
        assert_eq!(
            peer.error(&[b"{\"type\":\"health_check\"}", b"tensor"]),
            "frames: expected 1 for health_check, found a tensor"
        );
        assert_eq!(
            peer.error(&[b"{}", b"", b""]),
            "frames: expected 1 of JSON and at most 1 of a tensor, found more"
        );
        let long = vec![b' '; (4 << 20) + 1];
        assert!(peer.error(&[&long]).starts_with("the JSON frame: expected at most 4194304 bytes"));
        // Nothing of this has hurt.
        let answer = peer.ask(&greedy(1, &story.ids, 4, false));
        assert_eq!(ids_of(&answer["result"]["ids"]), story.greedy[..4]);
    }
}

#[test]
fn it_ends_when_a_message_says_so() {
    let mut server = Running::start();
    let (writer, peer) = (server.dealer(), server.req());
    let story = &stories()[0];
    writer.send(&greedy("long", &story.ids, 400, true));
    until("it writes", || writer.answer()["event"] == "tokens");
    assert_eq!(peer.ask(&json!({"type": "shutdown"}))["status"], "success");
    // The text is not lost: its summary comes.
    let (_, _, summary) = writer.stream(&json!("long"));
    assert_eq!(summary["finish_reason"], "cancelled");
    server.join();
}
