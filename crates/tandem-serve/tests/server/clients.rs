//! Programs that others wrote. Their requests are in `tests/clients`; the packages in `testdata/openai-requirements.txt`.

use std::path::{Path, PathBuf};
use std::process::Command;

use tandem_runtime::EngineOptions;
use tandem_serve::ServerOptions;
use tandem_testkit::{openai_python, run_python_in, scratch};

use crate::harness::{ENGINE, MODEL, TestServer};

const KEY: &str = "a-key";

fn server() -> TestServer {
    let options = ServerOptions { api_keys: vec![KEY.to_owned()], ..Default::default() };
    TestServer::start_with(options, EngineOptions { max_sequences: 8, max_waiting: 64, ..ENGINE })
}

/// What a script of `tests/clients` prints.
fn run(script: &str, server: &TestServer, more: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
    let text = std::fs::read_to_string(path).unwrap();
    let url = server.url("");
    let arguments = [&[&*url, MODEL, KEY], more].concat();
    run_python_in(&openai_python(), &text, &arguments).trim().to_owned()
}

#[test]
fn the_official_client_finds_what_it_expects() {
    assert_eq!(run("openai_suite.py", &server(), &[]), "16");
}

#[test]
fn litellm_finds_what_it_expects() {
    assert_eq!(run("litellm_suite.py", &server(), &[]), "6");
}

#[test]
fn answers_to_200_random_schemas_are_valid() {
    let printed = run("schemas.py", &server(), &["200"]);
    let (answers, different) = printed.split_once(' ').unwrap();
    assert_eq!(answers, "200");
    // The model has chosen; it is not all the shortest answer.
    assert!(different.parse::<usize>().unwrap() > 120, "{different}");
}

#[test]
fn schemathesis_finds_no_server_error_and_no_answer_against_the_document() {
    let server = server();
    let interpreter: PathBuf = openai_python();
    let program = interpreter.with_file_name("schemathesis");
    let folder = scratch("schemathesis");
    let output = Command::new(program)
        .current_dir(folder.path())
        .args(["run", &server.url("/openapi.json"), "--header", &format!("Authorization: Bearer {KEY}")])
        .args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance,\
                response_headers_conformance,response_schema_conformance,negative_data_rejection,unsupported_method"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "25", "--seed", "1", "--no-color"])
        // These end when the listener goes.
        .args(["--exclude-path", "/telemetry/stream", "--request-timeout", "60", "--workers", "4"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    server.assert_answers_with(KEY);
}
