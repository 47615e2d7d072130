//! The text side: tokenizers and chat templates that are missing, damaged, do not fit the model, or are hostile.

use serde_json::{Value, json};
use tandem_formats::DType;
use tandem_formats::gguf::Value as Key;
use tandem_model::chat::Message;
use tandem_model::{Checkpoint, Text};

use crate::gguf_keys::Gguf;
use crate::scratch::Model;

/// A tokenizer of 64 tokens, as many as the model has rows.
fn tokenizer() -> Value {
    let vocab: serde_json::Map<_, _> = ["<unk>", "a", "b", "ab"]
        .map(str::to_owned)
        .into_iter()
        .chain((4..63).map(|i| format!("t{i}")))
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 63, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": ["a b"]},
    })
}

/// A valid folder with tokenizer.
fn model() -> Model {
    let model = Model::new();
    model.save();
    model.put("tokenizer.json", tokenizer().to_string());
    model
}

fn text(model: &Model) -> tandem_model::Result<Text> {
    Checkpoint::open(model.path())?.text()
}

#[test]
fn the_tokenizer_these_tests_spoil_is_valid() {
    let text = text(&model()).unwrap();
    assert_eq!(text.tokenizer.encode("aba<end>").unwrap(), [3, 1, 63]);
    assert!(text.template.is_none());
}

#[test]
fn tokenizer_json() {
    let model = model();
    let refused = |content: &[u8]| {
        model.put("tokenizer.json", content);
        model.message(text(&model))
    };
    let whole = tokenizer().to_string();
    let content = "DIR/tokenizer.json: content: expected a tokenizer in JSON, found";
    assert_eq!(refused(b"hello"), format!("{content} expected value at line 1 column 1"));
    assert_eq!(refused(b""), format!("{content} EOF while parsing a value at line 1 column 0"));
    assert_eq!(
        refused(b"null"),
        format!("{content} invalid type: null, expected an object with a model at line 1 column 4")
    );
    for i in 0..100 {
        let message = refused(&whole.as_bytes()[..i * whole.len() / 100]);
        assert!(message.starts_with(&format!("{content} EOF while parsing")), "{message}");
    }
    let with = |pointer: &str, value: Value| {
        let mut json = tokenizer();
        *json.pointer_mut(pointer).unwrap() = value;
        refused(json.to_string().as_bytes())
    };
    let beyond = |id: u64| {
        format!(
            "DIR/tokenizer.json: highest token id: expected a tokenizer that fits the model's vocabulary of 64, found {id}"
        )
    };
    assert_eq!(with("/model/vocab/t62", json!(64)), beyond(64));
    assert_eq!(with("/model/vocab/t62", json!(u32::MAX)), beyond(u32::MAX.into()));
    assert_eq!(
        with("/model/merges", json!(["t10 t11"])),
        "DIR/tokenizer.json: model.merges: expected merges whose result is a token, found entry 0 longer than any token"
    );
    let message = with("/model/merges", json!(["a t4"]));
    let expected = "DIR/tokenizer.json: tokenizer loading: Token `at4` out of vocabulary at line 1";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(
        with("/model/type", json!("two\nlines")),
        "DIR/tokenizer.json: model.type: expected BPE, found two\\nlines"
    );
    assert_eq!(
        with("/added_tokens/0/id", json!(9)),
        "DIR/tokenizer.json: added token \"<end>\": expected id 63, found 9"
    );

    std::fs::remove_file(model.file("tokenizer.json")).unwrap();
    assert_eq!(
        model.message(text(&model)),
        "DIR: tokenizer: expected tokenizer.json in the folder, found none"
    );
}

#[test]
fn tokenizer_config_json() {
    let model = model();
    let refused = |content: &str| {
        model.put("tokenizer_config.json", content);
        let message = model.message(text(&model));
        message.strip_prefix("DIR/tokenizer_config.json: ").expect("the file's name").to_owned()
    };
    for (content, expected) in [
        ("", "content: expected a JSON object, found EOF while parsing a value at line 1 column 0"),
        ("[]", "content: expected a JSON object, found a list"),
        ("null", "content: expected a JSON object, found null"),
        (r#"{"chat_template": 1}"#, "chat_template: expected a string, found a number"),
        (r#"{"chat_template": {"a": "b"}}"#, "chat_template: expected a string, found an object"),
        (
            r#"{"chat_template": [{"name": "default", "template": []}]}"#,
            "chat_template[default].template: expected a string, found a list",
        ),
        (r#"{"bos_token": 1}"#, "bos_token: expected a string, found a number"),
        (r#"{"eos_token": {"content": 1}}"#, "eos_token: expected a string, found a number"),
        (r#"{"model_max_length": -1}"#, "model_max_length: expected a positive number, found -1"),
        (
            r#"{"chat_template": "{% for m in messages %}"}"#,
            "chat template: expected a Jinja template, found syntax error: unexpected end of input, \
             expected end of block (in chat_template:1)",
        ),
    ] {
        assert_eq!(refused(content), expected);
    }
    let long = json!({"chat_template": "x".repeat((1 << 20) + 1)}).to_string();
    assert_eq!(
        refused(&long),
        "chat template: expected a Jinja template, found expected at most 1048576 bytes, found 1048577"
    );
    let deep = json!({"chat_template": format!("{{{{ {} }}}}", "(".repeat(100_000))}).to_string();
    assert!(refused(&deep).starts_with("chat template: expected a Jinja template, found "));
}

#[test]
fn chat_template_jinja() {
    let model = model();
    model.put("chat_template.jinja", "a\n{{ b");
    assert_eq!(
        model.message(text(&model)),
        "DIR/chat_template.jinja: chat template: expected a Jinja template, found syntax error: \
         unexpected end of input, expected end of variable block (in chat_template:2)"
    );
    model.put("chat_template.jinja", b"\xff");
    assert_eq!(
        model.message(text(&model)),
        "DIR/chat_template.jinja: content: expected UTF-8 text, found invalid utf-8 sequence of 1 bytes from index 0"
    );
    model.put("chat_template.jinja", "x".repeat((1 << 20) + 1));
    assert_eq!(
        model.message(text(&model)),
        "DIR/chat_template.jinja: file size: expected at most 1048576 bytes, found 1048577 bytes"
    );
}

#[test]
fn templates_that_refuse_or_never_end() {
    let model = model();
    let render = |source: &str| {
        model.put("chat_template.jinja", source);
        let template = text(&model).unwrap().template.unwrap();
        let message = Message { role: "user".into(), content: "Hi".into() };
        model.message(template.render(&[message], true))
    };
    assert_eq!(
        render("{{ raise_exception('roles\nmust \x1b[2J alternate') }}"),
        "chat template: invalid operation: roles must \\u{1b}[2J alternate (in chat_template:1)"
    );
    for endless in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    ] {
        let message = render(endless);
        assert!(message.starts_with("chat template: "), "{message}");
    }
    assert!(render("{{ raise_exception('x' * 1000000) }}").ends_with("xxx..."));
}

/// A GGUF file with a vocabulary of its own (no `tokenizer.json` inside), and one key changed.
fn gguf_refused(gguf: &Gguf, changes: &[(&str, Option<Key>)]) -> String {
    let path = gguf.changed(|keys, _| {
        let tokens: Vec<String> = ["<unk>", "a", "b", "ab"]
            .into_iter()
            .map(str::to_owned)
            .chain((4..64).map(|i| format!("t{i}")))
            .collect();
        let mut types = vec![1i32; 64];
        types[0] = 2;
        let valid = [
            ("model", Key::from("llama")),
            ("tokens", tokens.into()),
            ("scores", vec![0f32; 64].into()),
            ("token_type", types.into()),
        ];
        keys.extend(valid.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
        for (key, value) in changes {
            crate::gguf_keys::set(keys, key, value.clone());
        }
    });
    let result = Checkpoint::open(&path).and_then(|c| c.text());
    if changes.is_empty() {
        assert_eq!(result.unwrap().tokenizer.vocab_size(), 64);
        return String::new();
    }
    let message = gguf.model.message(result);
    message.strip_prefix("DIR/bad.gguf: ").expect("the file's name comes first").to_owned()
}

#[test]
fn gguf_vocabularies() {
    let gguf = Gguf::new(DType::Q8_0);
    gguf_refused(&gguf, &[]);
    let strings = |n: usize| Key::from((0..n).map(|i| format!("s{i}")).collect::<Vec<_>>());
    for (key, value, expected) in [
        (
            "scores",
            Some(vec![0f32; 63].into()),
            "tokenizer.ggml.scores: expected 64 entries, as tokens, found 63",
        ),
        (
            "scores",
            None,
            "tokenizer.ggml.scores: expected one for each token of a llama vocabulary, found none",
        ),
        (
            "scores",
            Some(vec![0i32; 64].into()),
            "metadata `tokenizer.ggml.scores`: expected array of f32, found array of 64 i32",
        ),
        (
            "token_type",
            Some(vec![1i32; 65].into()),
            "tokenizer.ggml.token_type: expected 64 entries, as tokens, found 65",
        ),
        (
            "token_type",
            Some(vec![7i32; 64].into()),
            "tokenizer.ggml.token_type[0]: expected a number from 1 to 6, found 7",
        ),
        ("tokens", None, "tokenizer: expected key `tokenizer.ggml.tokens`, found none"),
        (
            "tokens",
            Some(strings(8)),
            "tokenizer.ggml.token_type: expected 8 entries, as tokens, found 64",
        ),
        (
            "tokens",
            Some(7u32.into()),
            "metadata `tokenizer.ggml.tokens`: expected array of strings, found u32 7",
        ),
        (
            "model",
            Some("t5\n".into()),
            "tokenizer.ggml.model: expected llama or gpt2, found \"t5\\n\"",
        ),
        (
            "model",
            Some("gpt2".into()),
            "tokenizer.ggml.merges: expected the merges of a gpt2 vocabulary, found none",
        ),
        (
            "eos_token_id",
            Some(64u32.into()),
            "eos_token_id: expected a token id below the vocabulary's size 64, found 64",
        ),
    ] {
        let key = format!("tokenizer.ggml.{key}");
        let mut changes = vec![(&*key, value)];
        if key.ends_with("eos_token_id") {
            changes.push(("tandem.stop_token_ids", None));
        }
        assert_eq!(gguf_refused(&gguf, &changes), expected);
    }
    assert_eq!(
        gguf_refused(
            &gguf,
            &[
                ("tokenizer.ggml.tokens", Some(strings(100))),
                ("tokenizer.ggml.scores", Some(vec![0f32; 100].into())),
                ("tokenizer.ggml.token_type", Some(vec![1i32; 100].into())),
            ]
        ),
        "highest token id: expected a tokenizer that fits the model's vocabulary of 64, found 99"
    );
    for (merges, expected) in [
        (
            vec!["ab ab ab".to_owned()],
            "model.merges: expected merges whose result is a token, found entry 0 longer than any token",
        ),
        (vec!["a".to_owned()], "tokenizer loading: Merges text file invalid at line 1"),
        (vec!["b a".to_owned()], "tokenizer loading: Token `ba` out of vocabulary"),
    ] {
        let changes = [
            ("tokenizer.ggml.model", Some("gpt2".into())),
            ("tokenizer.ggml.merges", Some(merges.into())),
        ];
        let message = gguf_refused(&gguf, &changes);
        assert!(message.starts_with(expected), "{message}");
    }
    assert_eq!(
        gguf_refused(&gguf, &[("tokenizer.huggingface.json", Some("{".into()))]),
        "content: expected a tokenizer in JSON, found EOF while parsing an object at line 1 column 1"
    );
    assert_eq!(
        gguf_refused(&gguf, &[("tokenizer.chat_template", Some("{% if %}".into()))]),
        "chat template: expected a Jinja template, found syntax error: unexpected end of block, expected expression (in chat_template:1)"
    );
}
