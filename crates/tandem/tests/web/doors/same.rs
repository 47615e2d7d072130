//! Whichever way a text is asked for, it is the same text.

use std::ops::ControlFlow;

use serde_json::{Value, json};
use tandem_ipc::client::TextEvent;
use tandem_ipc::protocol::{Generate, SamplingFields};
use tandem_runtime::SamplingParams;
use tandem_testkit::scratch;

use super::{Scheduler, chat, client, completion, post, socket_in, stream};
use crate::{Server, get, tandem};

const PROMPT: &str = "Once upon a time";
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// The text that a process writes by itself.
fn in_process(tokens: usize) -> Value {
    let output = tandem()
        .args(["generate", PROMPT, "--raw", "--temp", "0", "--json", "--threads", "1", "--quiet"])
        .args(["-n", &tokens.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The same over ZeroMQ, as one answer and as the pieces of a stream.
fn over_zeromq(address: &str, tokens: usize) -> (String, Vec<u32>) {
    let generate = Generate {
        prompt: Some(PROMPT.to_owned()),
        max_tokens: Some(tokens),
        sampling: SamplingFields::from(&SamplingParams::GREEDY),
        ..Generate::default()
    };
    let (mut text, mut ids) = (String::new(), Vec::new());
    let result = client(address).generate(&generate, &mut |event| {
        if let TextEvent::Tokens { ids: new, text: more, .. } = event {
            ids.extend(new);
            text += &more;
        }
        ControlFlow::Continue(())
    });
    let result = result.unwrap();
    assert_eq!((&result.text, &result.ids), (&text, &ids));
    (text, ids)
}

/// The choices of an answer, of which the ids are its own.
fn choices(url: &str, path: &str, body: &Value) -> Value {
    let (status, mut answer) = post(url, path, body);
    assert_eq!(status, 200, "{body}: {answer}");
    let mut choices = answer["choices"].take();
    for choice in choices.as_array_mut().unwrap() {
        for call in choice["message"]["tool_calls"].as_array_mut().into_iter().flatten() {
            call["id"] = Value::Null;
        }
    }
    choices
}

/// What `url` has at `path`.
fn parse(url: &str, path: &str) -> Value {
    serde_json::from_str(&get(&format!("{url}{path}")).unwrap()).unwrap()
}

#[test]
fn greedy_tokens_are_equal_through_every_door() {
    let expected = in_process(40);
    let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
    let text = expected["text"].as_str().unwrap();
    assert!(ids.len() > 20, "{text}");

    let scheduler = Scheduler::start(&[]);
    let front = scheduler.served(&[]);
    let folder = scratch("both-doors");
    let address = socket_in(folder.path());
    let both = Server::start(&["--zmq", &address]);
    for address in [&scheduler.address, &address] {
        assert_eq!(over_zeromq(address, 40), (text.to_owned(), ids.clone()), "{address}");
    }
    for url in [&front.url, &both.url] {
        let (_, answer) = post(url, COMPLETIONS, &completion(PROMPT, 40));
        assert_eq!(answer["choices"][0]["text"], text, "{url}");
        assert_eq!(answer["usage"]["completion_tokens"], ids.len(), "{url}");
        let question = chat("Tell me a story.", 30);
        let (_, whole) = post(url, CHAT, &question);
        let content = whole["choices"][0]["message"]["content"].as_str().unwrap();
        let mut wanted = question.clone();
        wanted["stream_options"] = json!({"include_usage": true});
        let events: Vec<Value> = stream(url, CHAT, &wanted).collect();
        let pieces: Vec<&str> = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(pieces.concat(), content, "{url}");
        assert!(pieces.len() > 5, "{pieces:?}");
        assert_eq!(events.last(), Some(&Value::Null));
        let usage = &events[events.len() - 2]["usage"];
        for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(usage[count], whole["usage"][count], "{url} {count}");
        }
        // A stop string, told in pieces too.
        let stop = content.split(' ').nth(6).unwrap();
        let mut stopped = question;
        stopped["stop"] = json!([stop]);
        let begin = content.split_once(stop).unwrap().0;
        let choice = &choices(url, CHAT, &stopped)[0];
        assert_eq!(
            (choice["message"]["content"].as_str(), &choice["finish_reason"]),
            (Some(begin), &json!("stop"))
        );
        let told: String = stream(url, CHAT, &stopped)
            .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
            .collect();
        assert_eq!(told, begin);
    }
    both.stop();
    front.stop();
}

#[test]
fn a_scheduler_does_all_that_an_engine_here_does() {
    let schema = json!({
        "type": "object", "required": ["colour", "n"], "additionalProperties": false,
        "properties": {"colour": {"enum": ["red", "blue"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "c", "schema": schema}});
    let tool = json!({"type": "function", "function": {"name": "paint", "parameters": schema}});
    let two = json!({"type": "function", "function": {"name": "look"}});
    let broken =
        json!({"type": "json_schema", "json_schema": {"name": "c", "schema": {"$ref": "#/no"}}});
    let forms = [
        json!({"response_format": format}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"tools": [tool, two], "tool_choice": "required"}),
        json!({"tools": [tool, two], "tool_choice": {"type": "function", "function": {"name": "paint"}}}),
        json!({"tools": [tool], "parallel_tool_calls": true}),
        json!({"logprobs": true, "top_logprobs": 4}),
        json!({"logprobs": true, "frequency_penalty": 1.5, "presence_penalty": 0.5, "n": 2, "temperature": 1, "seed": 5}),
        json!({"logit_bias": {"300": 100}, "max_tokens": 3}),
    ];
    let refused = [
        json!({"response_format": broken}),
        json!({"logit_bias": {"4000000": 1}}),
        json!({"top_logprobs": 21, "logprobs": true}),
    ];
    let scheduler = Scheduler::start(&[]);
    let (front, here) = (scheduler.served(&[]), Server::start(&[]));
    let with = |fields: Value| {
        let mut body = chat("What is it like?", 60);
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    for body in forms.map(with) {
        assert_eq!(choices(&front.url, CHAT, &body), choices(&here.url, CHAT, &body), "{body}");
    }
    for body in refused.map(with) {
        let answer = post(&front.url, CHAT, &body);
        assert_eq!(answer.0, 400, "{body}");
        assert_eq!(answer, post(&here.url, CHAT, &body), "{body}");
    }
    // What they are, and not only that they are alike.
    let choice = &choices(&front.url, CHAT, &with(json!({"response_format": format})))[0];
    let said: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
    assert!(jsonschema::is_valid(&schema, &said), "{said}");
    let choice =
        &choices(&front.url, CHAT, &with(json!({"tools": [tool], "tool_choice": "required"})))[0];
    let call = &choice["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(call["name"] == "paint" && jsonschema::is_valid(&schema, &arguments), "{call}");
    let mut body = completion(PROMPT, 5);
    body["logprobs"] = json!(2);
    let choice = &choices(&front.url, COMPLETIONS, &body)[0];
    assert_eq!(choice["logprobs"]["token_logprobs"].as_array().unwrap().len(), 5, "{choice}");
    assert_eq!(*choice, choices(&here.url, COMPLETIONS, &body)[0]);
    let events: Vec<Value> = stream(&front.url, COMPLETIONS, &body).collect();
    let told: usize = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["tokens"].as_array())
        .map(Vec::len)
        .sum();
    assert_eq!(told, 5, "{events:?}");
}

#[test]
fn both_doors_serve_several_at_a_time_and_tell_figures() {
    let folder = scratch("several");
    let address = socket_in(folder.path());
    let both = Server::start(&["--zmq", &address, "--kv-tokens", "2048"]);
    let front = Server::start(&["--connect", &address]);
    let prompts: Vec<String> = (0..6).map(|day| format!("It was day {day}. Tom")).collect();
    // Asked again, as below: what of a prompt was cached may round otherwise.
    let twice = |prompt: &String| {
        let ask = || choices(&both.url, COMPLETIONS, &completion(prompt, 50));
        (ask(), ask()).1
    };
    let alone: Vec<Value> = prompts.iter().map(twice).collect();
    std::thread::scope(|scope| {
        for (prompt, expected) in prompts.iter().zip(&alone) {
            for url in [&both.url, &front.url] {
                scope.spawn(move || {
                    let found = choices(url, COMPLETIONS, &completion(prompt, 50));
                    assert_eq!(found, *expected, "{url}");
                });
            }
        }
    });
    let figures = get(&format!("{}/metrics", front.url)).unwrap();
    let sum = |name: &str| -> f64 {
        let lines = figures.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!(sum("tandem_texts_total"), 6.0, "{figures}");
    assert_eq!(sum("tandem_first_token_seconds_count"), 6.0, "{figures}");
    assert!(sum("tandem_generated_tokens_total") > 60.0 && sum("tandem_ready") == 1.0, "{figures}");
    let telemetry = parse(&front.url, "/telemetry");
    assert!(telemetry["total_packets_processed"].as_u64().unwrap() > 100, "{telemetry}");
    // All KV pages hold more than one text may have.
    let health = client(&address).health_check().unwrap().fields;
    assert_eq!(health["kv_cache"]["tokens"], 2048);
    for url in [&both.url, &front.url] {
        let props = parse(url, "/props");
        assert_eq!(
            (&props["kv_tokens"], &props["context"]),
            (&json!(2048), &health["model"]["context"])
        );
    }
    front.stop();
    both.stop();
}

#[test]
fn a_scheduler_shows_what_an_engine_here_shows() {
    let scheduler = Scheduler::start(&[]);
    let (front, here) = (scheduler.served(&[]), Server::start(&[]));
    let [behind, here_state] = [&front.url, &here.url].map(|url| {
        post(url, COMPLETIONS, &completion(PROMPT, 20));
        let trace = parse(url, "/trace");
        let events = trace["traceEvents"].as_array().unwrap();
        assert!(events.iter().filter(|event| event["name"] == "lm_head").count() >= 20, "{url}");
        parse(url, "/dashboard/state")
    });
    // The model is the same, and so are its experts' tokens and what is computed where.
    for part in ["experts", "plan"] {
        assert_eq!(behind[part], here_state[part], "{part}");
    }
    assert_eq!(behind["bandwidth"]["source"], "operations");
    assert_eq!(behind["token"]["enabled"], here_state["token"]["enabled"]);
    let spans = |state: &Value| -> Vec<(Value, Value)> {
        let spans = state["timeline"]["spans"].as_array().unwrap();
        spans.iter().map(|span| (span["operation"].clone(), span["layer"].clone())).collect()
    };
    assert!(spans(&behind).len() > 6 * 5, "{behind}");
    assert_eq!(spans(&behind), spans(&here_state));
    // Rates are of the last seconds.
    assert!(behind["tokens"]["generated_per_s"].is_number(), "{}", behind["tokens"]);
    front.stop();
    here.stop();
}
