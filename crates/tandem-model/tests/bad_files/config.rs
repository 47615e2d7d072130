//! `config.json`: keys that are missing, of the wrong type, out of range, or contradict each other.

use serde_json::{Value, json};
use tandem_model::Checkpoint;

use crate::scratch::Model;

/// The message for a config with one key changed; null takes it away.
fn with(key: &str, value: &Value) -> String {
    let mut model = Model::new();
    model.config[key] = value.clone();
    model.save();
    model.refused()
}

fn refused(key: &str, value: Value, expected: &str, found: &str) {
    assert_eq!(
        with(key, &value),
        format!("DIR/config.json: {key}: expected {expected}, found {found}")
    );
}

#[test]
fn the_model_these_tests_spoil_is_valid() {
    let model = Model::new();
    model.save();
    assert_eq!(Checkpoint::open(model.path()).unwrap().config().q_dim(), 64);
}

#[test]
fn no_config() {
    let model = Model::new();
    model.save();
    std::fs::remove_file(model.file("config.json")).unwrap();
    assert_eq!(
        model.refused(),
        "DIR/config.json: cannot open: No such file or directory (os error 2)"
    );
    std::fs::create_dir(model.file("config.json")).unwrap();
    assert_eq!(
        model.refused(),
        "DIR/config.json: path: expected a regular file, found a directory"
    );
}

#[test]
fn no_json_object() {
    let model = Model::new();
    model.save();
    for (content, found) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("hello", "expected value at line 1 column 1"),
        ("{\"a\":\n", "EOF while parsing a value at line 2 column 0"),
        ("[1]", "a list"),
        ("7", "a number"),
        ("null", "null"),
    ] {
        model.put("config.json", content);
        let expected = format!("DIR/config.json: content: expected a JSON object, found {found}");
        assert_eq!(model.refused(), expected);
    }
    model.put("config.json", "[".repeat(100_000));
    assert!(model.refused().contains("recursion limit exceeded"), "{}", model.refused());
    model.put("config.json", b"{\"a\xff\": 1}");
    assert!(model.refused().contains("expected a JSON object, found "), "{}", model.refused());
    model.put("config.json", " ".repeat((1 << 20) + 1));
    assert_eq!(
        model.refused(),
        "DIR/config.json: file size: expected at most 1048576 bytes, found 1048577 bytes"
    );
}

#[test]
fn dimensions_and_counts() {
    const SIZE: &str = "a whole number from 1 to 1048576";
    const COUNT: &str = "a whole number from 1 to 4096";
    for (key, expected, optional) in [
        ("vocab_size", SIZE, false),
        ("hidden_size", SIZE, false),
        ("num_hidden_layers", COUNT, false),
        ("num_attention_heads", SIZE, false),
        ("num_local_experts", COUNT, false),
        ("intermediate_size", SIZE, false),
        ("max_position_embeddings", SIZE, false),
        ("num_key_value_heads", SIZE, true),
        ("head_dim", SIZE, true),
        ("sliding_window", SIZE, true),
    ] {
        for (value, found) in [
            (json!(0), "0"),
            (json!(-1), "-1"),
            (json!(1.5), "1.5"),
            (json!(1 << 21), "2097152"),
            (json!(u64::MAX), "18446744073709551615"),
            (json!(1e300), "1e+300"),
            (json!("8"), "\"8\""),
            (json!("a\nb"), "\"a\\nb\""),
            (json!(true), "true"),
            (json!([8]), "a list"),
            (json!({}), "an object"),
        ] {
            refused(key, value, expected, found);
        }
        if !optional {
            refused(key, Value::Null, expected, "no such key");
        }
    }
    refused("num_local_experts", json!(4097), COUNT, "4097");
    let long = format!("\"{}…", "x".repeat(39));
    refused("hidden_size", json!("x".repeat(100_000)), SIZE, &long);
}

#[test]
fn constants() {
    for key in ["rope_theta", "rms_norm_eps", "router_jitter_noise"] {
        for (value, found) in [
            (json!(0), "0"),
            (json!(-0.5), "-0.5"),
            (json!(1e300), "1e+300"),
            (json!(1e-300), "1e-300"),
            (json!("1e-5"), "\"1e-5\""),
            (json!([]), "a list"),
        ] {
            refused(key, value, "a positive number", found);
        }
    }
}

#[test]
fn other_architectures() {
    refused("model_type", Value::Null, "\"phimoe\"", "no such key");
    refused("model_type", json!("mixtral"), "\"phimoe\"", "\"mixtral\"");
    refused("model_type", json!(["phimoe"]), "\"phimoe\"", "a list");
    refused("hidden_act", json!("gelu"), "\"silu\"", "\"gelu\"");
    refused("attention_bias", json!(false), "true", "false");
    refused("lm_head_bias", json!(false), "true", "false");
    refused("tie_word_embeddings", json!(true), "false", "true");
    refused("num_experts_per_tok", json!(4), "2", "4");
    refused("rope_scaling", json!({"type": "longrope"}), "null", "an object");
}

#[test]
fn heads() {
    let check = |changes: Value, expected: &str| {
        let mut model = Model::new();
        for (key, value) in changes.as_object().unwrap() {
            model.config[key] = value.clone();
        }
        model.save();
        assert_eq!(model.refused(), format!("DIR/config.json: {expected}"));
    };
    check(
        json!({"num_key_value_heads": 3}),
        "number of key/value heads: expected a divisor of the 4 query heads, found 3",
    );
    check(
        json!({"num_key_value_heads": 8}),
        "number of key/value heads: expected a divisor of the 4 query heads, found 8",
    );
    check(json!({"head_dim": 15}), "head_dim: expected an even number, found 15");
    check(
        json!({"head_dim": null, "num_attention_heads": 3}),
        "num_attention_heads: expected a divisor of hidden_size 32 (there is no head_dim), found 3",
    );
    check(
        json!({"head_dim": null, "num_attention_heads": 32, "num_key_value_heads": 32}),
        "head_dim: expected an even number, found 1",
    );
    check(json!({"num_local_experts": 1}), "number of experts: expected at least 2, found 1");
}

/// `transformers` 5 writes RoPE's settings into an object of their own.
#[test]
fn rope_parameters() {
    refused("rope_parameters", json!(1), "an object", "1");
    let mut model = Model::new();
    model.config["rope_theta"] = Value::Null;
    for (parameters, expected) in [
        (
            json!({"rope_type": "longrope", "rope_theta": 1e4}),
            "rope_parameters.rope_type: expected \"default\", found \"longrope\"",
        ),
        (
            json!({"rope_type": "default", "rope_theta": 0}),
            "rope_parameters.rope_theta: expected a positive number, found 0",
        ),
    ] {
        model.config["rope_parameters"] = parameters;
        model.save();
        assert_eq!(model.refused(), format!("DIR/config.json: {expected}"));
    }
    model.config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5e5});
    model.save();
    assert_eq!(Checkpoint::open(model.path()).unwrap().config().rope_theta, 5e5);
}

#[test]
fn special_ids() {
    let id = "a token id";
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        refused(key, json!(-1), id, "-1");
        refused(key, json!("</s>"), id, "\"</s>\"");
        refused(key, json!(u64::from(u32::MAX) + 1), id, "4294967296");
        refused(key, json!(64), "a token id below the vocabulary's size 64", "64");
    }
    refused("eos_token_id", json!([1, 2.5]), id, "2.5");

    let model = Model::new();
    model.save();
    model.put("generation_config.json", r#"{"eos_token_id": [3, 64]}"#);
    assert_eq!(
        model.refused(),
        "DIR/generation_config.json: eos_token_id: expected a token id below the vocabulary's size 64, found 64"
    );
    model.put("generation_config.json", "[]");
    assert_eq!(
        model.refused(),
        "DIR/generation_config.json: content: expected a JSON object, found a list"
    );
}
