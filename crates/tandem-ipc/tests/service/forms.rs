//! What is asked of single tokens: log probabilities, biases, penalties, and forms that the answer keeps to.

use serde_json::{Value, json};
use tandem_golden::{stories, stories_bf16};
use tandem_model::Checkpoint;
use tandem_model::detokenize::Special;
use tandem_runtime::{Request, SamplingParams, TokenLogprobs};

use crate::support::{Running, greedy, ids_of};

/// A greedy text with other fields besides.
fn with(ids: &[u32], max_tokens: usize, stream: bool, fields: Value) -> Value {
    let mut message = greedy("t", ids, max_tokens, stream);
    let Value::Object(fields) = fields else { panic!("{fields}: no object") };
    message.as_object_mut().unwrap().extend(fields);
    message
}

/// Equal but for rounding, which depends on what of the prompt was cached.
fn check_logprobs(found: &Value, expected: &[TokenLogprobs]) {
    let close = |found: &Value, (id, logprob): (u32, f32)| {
        assert_eq!(found["id"], id);
        let off = found["logprob"].as_f64().unwrap() - f64::from(logprob);
        assert!(off.abs() < 1e-3, "{found}, expected {logprob}");
    };
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        close(found, (expected.id, expected.logprob));
        let top = found["top"].as_array().unwrap();
        assert_eq!(top.len(), expected.top.len());
        top.iter().zip(&expected.top).for_each(|(found, &expected)| close(found, expected));
    }
}

#[test]
fn log_probabilities_are_the_engine_s_in_one_answer_and_in_a_stream() {
    let server = Running::start();
    let story = &stories()[0];
    let request = Request {
        max_tokens: Some(12),
        logprobs: Some(3),
        continues_prompt: true,
        ..Request::new(SamplingParams::GREEDY, vec![])
    };
    let expected = server.engine.submit(story.ids.clone(), request).unwrap().wait().unwrap();
    let expected = expected.logprobs;
    assert_eq!((expected.len(), expected[0].top.len()), (12, 3));

    let answer = server.req().ask(&with(&story.ids, 12, false, json!({"logprobs": 3})));
    check_logprobs(&answer["result"]["logprobs"], &expected);
    let peer = server.dealer();
    peer.send(&with(&story.ids, 12, true, json!({"logprobs": 3})));
    let mut told = Vec::new();
    let summary = loop {
        let answer = peer.answer();
        if answer["event"] == "finished" {
            break answer["result"].clone();
        }
        let logprobs = answer["logprobs"].as_array().cloned().unwrap_or_default();
        assert_eq!(logprobs.len(), answer["ids"].as_array().map_or(0, Vec::len), "{answer}");
        told.extend(logprobs);
    };
    assert_eq!(json!(told), summary["logprobs"]);
    check_logprobs(&summary["logprobs"], &expected);
    // Without alternatives, and not at all.
    let alone = peer.ask(&with(&story.ids, 2, false, json!({"logprobs": 0})));
    assert_eq!(alone["result"]["logprobs"][1]["top"], json!([]));
    let none = peer.ask(&greedy("t", &story.ids, 2, false));
    assert_eq!(none["result"].get("logprobs"), None);
}

#[test]
fn biases_and_penalties_change_what_is_chosen() {
    let server = Running::start();
    let peer = server.req();
    let story = &stories()[0];
    let write = |sampling: Value, written: &[u32], max_tokens: usize| {
        let fields = json!({"sampling": sampling, "written_ids": written});
        ids_of(&peer.ask(&with(&story.ids, max_tokens, false, fields))["result"]["ids"])
    };
    let wanted = story.greedy[0] + 1;
    let always = json!({"temperature": 0, "logit_bias": {wanted.to_string(): 100}});
    assert_eq!(write(always, &[], 3), [wanted; 3]);
    let penalties = [json!({"frequency_penalty": 1.5}), json!({"presence_penalty": 4})];
    for mut sampling in penalties {
        sampling["temperature"] = json!(0);
        let penalized = write(sampling.clone(), &[], 40);
        assert_ne!(penalized, story.greedy[..40], "{sampling}");
        // What another has written is part of the answer that the penalty is about.
        for cut in [1, 25] {
            let rest = write(sampling.clone(), &penalized[..cut], 40 - cut);
            assert_eq!(rest, penalized[cut..], "{sampling}, {cut}");
        }
    }
}

#[test]
fn answers_keep_to_their_form_also_where_another_has_begun_them() {
    let server = Running::start();
    let peer = server.req();
    let schema = json!({
        "type": "object", "required": ["name", "pets"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "pets": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"enum": ["cat", "dog"]}},
        },
    });
    let tokenizer = Checkpoint::open(&stories_bf16()).unwrap().text().unwrap().tokenizer;
    let tool = json!({"name": "feed", "parameters": schema});
    let tools = json!({"tools": [tool, {"name": "rest"}], "required": true});
    for form in [json!({"json_schema": schema}), json!({"tools": tools})] {
        let ask = |written: &[u32]| {
            let message = json!({
                "type": "generate", "prompt": "Once", "sampling": {"temperature": 0}, "constraint": form,
                "written_ids": written, "max_tokens": 300,
            });
            let result = peer.ask(&message)["result"].clone();
            assert_eq!(result["finish_reason"], "stop", "{result}");
            [written, &ids_of(&result["ids"])].concat()
        };
        let whole = ask(&[]);
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            let text = tokenizer.decode(&ask(&whole[..cut]), Special::Skip);
            let text = text.trim();
            let json = match form.get("tools") {
                None => text,
                Some(_) => {
                    let call = text.strip_prefix("<tool_call>").unwrap();
                    call.strip_suffix("</tool_call>").unwrap()
                }
            };
            let json: Value = serde_json::from_str(json).unwrap();
            let said = json.get("arguments").unwrap_or(&json);
            if json["name"] != "rest" || form.get("tools").is_none() {
                assert!(jsonschema::is_valid(&schema, said), "{text}");
            }
        }
    }
}

#[test]
fn forms_and_numbers_that_cannot_be_are_refused() {
    let server = Running::start();
    let peer = server.req();
    let deep = (0..60).fold(json!(true), |inner, _| json!({"properties": {"a": inner}}));
    let many = json!({"tools": vec![json!({"name": "t"}); 129]});
    for (fields, expected) in [
        (json!({"logprobs": 21}), "logprobs: expected at most 20, found 21"),
        (json!({"sampling": {"logit_bias": {"a": 1}}}), "generate: "),
        (
            json!({"sampling": {"logit_bias": {"4000000": 1}}}),
            "sampling.logit_bias: expected ids from 0 to ",
        ),
        (json!({"constraint": {"regex": "a"}}), "generate: unknown variant `regex`"),
        (json!({"constraint": {"json_schema": "a"}}), "constraint: expected a JSON schema"),
        (json!({"constraint": {"json_schema": {"$ref": "#/no"}}}), "constraint: "),
        (json!({"constraint": {"tools": {"tools": []}}}), "constraint: tools: expected 1 to 128"),
        (json!({"constraint": {"tools": many}}), "constraint: tools: expected 1 to 128, found 129"),
        (
            json!({"constraint": {"json_schema": true}, "stop_ids": [7]}),
            "stop_ids: not together with constraint",
        ),
        (
            json!({"constraint": {"json_schema": {"const": 1}}, "written_ids": [100, 101]}),
            "the answer's grammar: written_ids: ",
        ),
    ] {
        let mut message = json!({"type": "generate", "prompt": "Once", "max_tokens": 1});
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        peer.send_raw(&[message.to_string().as_bytes()]);
        let answer = peer.answer();
        assert_eq!(answer["code"], "bad_request", "{message}: {answer}");
        let found = answer["error"].as_str().unwrap();
        assert!(found.starts_with(expected) && !found.contains('\n'), "{found}");
    }
    // Those that are understood do not take the scheduler with them either.
    let large = json!({"type": "string", "pattern": "((a{999}){999}){999}"});
    for schema in [deep, large] {
        let message = json!({
            "type": "generate", "prompt": "Once", "max_tokens": 4, "constraint": {"json_schema": schema},
        });
        assert_eq!(peer.ask(&message)["status"], "success");
    }
}
