//! Which files a folder has, and what its index says about them.

use serde_json::json;
use tandem_model::Checkpoint;

use crate::scratch::{Model, one_line};

const INDEX: &str = "model.safetensors.index.json";

/// A model whose weights lie in two files.
fn sharded() -> Model {
    let model = Model::new();
    model.save();
    std::fs::remove_file(model.file("model.safetensors")).unwrap();
    let (a, b) = model.tensors.split_at(model.tensors.len() / 2);
    model.save_weights("a.safetensors", a);
    model.save_weights("b.safetensors", b);
    index(&model, &["a.safetensors", "b.safetensors"]);
    model
}

/// Writes an index that names those files.
fn index(model: &Model, files: &[&str]) {
    let map: serde_json::Map<_, _> =
        files.iter().enumerate().map(|(i, f)| (format!("t{i}"), json!(f))).collect();
    model.put(INDEX, json!({"weight_map": map}).to_string());
}

#[test]
fn no_weights() {
    let model = Model::new();
    model.save();
    std::fs::remove_file(model.file("model.safetensors")).unwrap();
    assert_eq!(
        model.refused(),
        "DIR: weights: expected model.safetensors, or model.safetensors.index.json and the files it names, found neither"
    );
}

#[test]
fn paths_that_are_no_model() {
    let model = Model::new();
    model.save();
    let open = |name: &str| model.message(Checkpoint::open(&model.file(name)));
    assert_eq!(open("none"), "DIR/none: cannot open: No such file or directory (os error 2)");
    assert_eq!(
        open("model.safetensors"),
        "DIR/model.safetensors: model: expected a GGUF file, or the folder that holds config.json, \
         found a .safetensors file; give its folder `DIR`"
    );
    assert_eq!(
        one_line(Checkpoint::open("/dev/zero".as_ref())),
        "/dev/zero: path: expected a regular file, found a device, pipe or socket"
    );
    assert_eq!(open("a\nb"), "DIR/a\\nb: cannot open: No such file or directory (os error 2)");
}

#[test]
fn shards() {
    let mut model = sharded();
    Checkpoint::open(model.path()).unwrap();

    index(&model, &["a.safetensors", "c.safetensors"]);
    assert_eq!(
        model.refused(),
        "DIR/c.safetensors: cannot open: No such file or directory (os error 2)"
    );

    index(&model, &["a.safetensors"]);
    let (first, last) = model.tensors.split_at(model.tensors.len() / 2);
    assert_eq!(
        model.refused(),
        format!(
            "DIR: tensor `{}`: expected to be there (the config asks for it), found no such tensor",
            last[0].name
        )
    );

    model.save_weights("b.safetensors", &[last, &first[..1]].concat());
    index(&model, &["a.safetensors", "b.safetensors"]);
    assert_eq!(
        model.refused(),
        format!(
            "DIR/b.safetensors: tensor `{}`: expected one tensor of that name, found another in DIR/a.safetensors",
            first[0].name
        )
    );

    model.tensors.push(model.tensors[0].clone());
    let last = model.tensors.len() - 1;
    model.tensors[last].name = "two\nlines \u{1b}[2J".into();
    model.save_weights("b.safetensors", &model.tensors[last..]);
    model.save_weights("a.safetensors", &model.tensors[last..]);
    assert_eq!(
        model.refused(),
        "DIR/b.safetensors: tensor `two\\nlines \\u{1b}[2J`: expected one tensor of that name, \
         found another in DIR/a.safetensors"
    );
}

#[test]
fn an_index_cannot_lead_outside_the_folder() {
    let model = sharded();
    let outside = model.path().parent().unwrap().join("a.safetensors");
    for name in [
        "../a.safetensors",
        outside.to_str().unwrap(),
        "x/a.safetensors",
        "x/../a.safetensors",
        "..",
        ".",
        "",
        "/",
    ] {
        index(&model, &["a.safetensors", name]);
        let expected = format!(
            "DIR/{INDEX}: weight_map: expected names of files in this folder, found `{name}`"
        );
        let message = crate::scratch::one_line(Checkpoint::open(model.path()));
        assert_eq!(message.replacen(model.path().to_str().unwrap(), "DIR", 1), expected);
    }
    index(&model, &["a\nb"]);
    assert!(model.refused().starts_with("DIR/a\\nb: cannot open"), "{}", model.refused());
    index(&model, &[&"x".repeat(100_000)]);
    let message = model.refused();
    assert!(
        message.contains("in this folder, found `xxx") && message.ends_with("xxx..."),
        "{message}"
    );
}

#[test]
fn a_damaged_index() {
    let model = sharded();
    for (content, found) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("{}", "missing field `weight_map` at line 1 column 2"),
        (r#"{"weight_map": 1}"#, "invalid type: integer `1`, expected a map at line 1 column 16"),
        (
            r#"{"weight_map": {"t": 1}}"#,
            "invalid type: integer `1`, expected a string at line 1 column 22",
        ),
    ] {
        model.put(INDEX, content);
        let expected =
            format!("DIR/{INDEX}: content: expected a JSON object with weight_map, found {found}");
        assert_eq!(model.refused(), expected);
    }
    index(&model, &[]);
    assert_eq!(
        model.refused(),
        format!("DIR/{INDEX}: weight_map: expected at least one file, found none")
    );
}
