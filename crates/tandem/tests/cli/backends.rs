//! Other libraries that compute: ONNX Runtime, and oneDNN for prompts.

use std::path::Path;
use std::process::Command as Process;

use serde_json::Value;
use tandem_golden::{stories, stories_bf16};
use tandem_testkit::{onednn_library, onnxruntime_library, scratch, testdata};

use crate::{error_line, stderr, stdout, tandem};

const PROMPT: &str = "Tell me a short story about a dragon named Max.";

/// `tandem run` with ONNX Runtime.
fn onnx() -> assert_cmd::Command {
    let mut command = tandem();
    command.args(["run", PROMPT, "--backend", "onnxruntime", "--onnxruntime"]);
    command.arg(onnxruntime_library());
    command
}

fn answer(command: &mut assert_cmd::Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// The reference's text, of the model itself and of an export of it.
#[test]
fn onnx_runtime_writes_the_references_text() {
    let golden = stories();
    let prompt = golden.iter().find(|p| p.ids.len() == 18).unwrap();
    let (stop, expected) = prompt.greedy.split_last().unwrap();
    assert_eq!(*stop, 3);
    let scratch = scratch("backend");
    let export = scratch.path().join("onnx");
    let output =
        tandem().arg("export-onnx").arg("-m").arg(stories_bf16()).arg(&export).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let left = scratch.path().join("temporary");
    std::fs::create_dir(&left).unwrap();
    for model in [stories_bf16(), export] {
        let mut command = onnx();
        command.args(["--temp", "0", "--json", "-m"]).arg(&model).env("TMPDIR", &left);
        let answer = answer(&mut command);
        let ids: Vec<u32> = serde_json::from_value(answer["ids"].clone()).unwrap();
        assert_eq!(ids, expected, "{}", model.display());
        assert_eq!(answer["finish_reason"], "stop");
    }
    // `.ses` is ONNX Runtime's own.
    let names = std::fs::read_dir(&left).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.filter(|name| name != ".ses").collect();
    assert!(names.is_empty(), "the export is removed, not {names:?}");
}

/// Sampled, guessing ahead, in small batches, up to a stop string: as Tandem does with the same logits.
#[test]
fn onnx_runtime_samples_and_stops_as_tandem_does() {
    let options =
        ["--seed", "7", "--temp", "0.7", "--lookup", "3", "--batch", "5", "--stop", " Max"];
    let model = stories_bf16();
    let mut onnx = onnx();
    onnx.args(options).arg("-m").arg(&model);
    let mut own = tandem();
    own.args(["run", PROMPT, "--kv-type", "f32"]).args(options).arg("-m").arg(&model);
    let (onnx, own) = (onnx.output().unwrap(), own.output().unwrap());
    assert!(onnx.status.success(), "{}", stderr(&onnx));
    assert_eq!(stdout(&onnx), stdout(&own));
    assert!(!stdout(&onnx).contains("Max"));
    let notes = stderr(&onnx);
    assert!(notes.contains("by ONNX Runtime (") && notes.contains("guesses right"), "{notes}");
}

#[test]
fn a_context_ends_where_it_is_full() {
    let mut command = onnx();
    let output = command.args(["--temp", "0", "-c", "24"]).output().unwrap();
    assert!(stderr(&output).contains("the context of 24 tokens is full"), "{}", stderr(&output));
    let mut command = onnx();
    let message = error_line(command.args(["-c", "100000"]));
    assert!(message.contains("--ctx: expected at most 512 tokens"), "{message}");
}

/// A shared library of a few lines of C.
fn stand_in(file: &Path, code: &str) {
    let source = file.with_file_name("library.c");
    std::fs::write(&source, code).unwrap();
    let mut cc = Process::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(file).arg(&source);
    assert!(cc.status().unwrap().success());
}

/// A library that says it is an old ONNX Runtime, one that is none, a file that is no library, and nothing.
#[test]
fn libraries_that_will_not_do_are_refused() {
    let error = |library: &Path| {
        let mut command = tandem();
        command.args(["run", PROMPT, "--backend", "onnxruntime", "--onnxruntime"]);
        error_line(command.arg(library))
    };
    let scratch = scratch("stand-in");
    let library = scratch.path().join("libonnxruntime.so.1");
    let old = "static const char *version(void) { return \"1.18.2\"; } static struct { const void \
               *(*api)(unsigned); const char *(*version)(void); } base = { 0, version }; const void \
               *OrtGetApiBase(void) { return &base; }";
    for (code, expected) in [
        (old, "expected version 1.22 or later, found 1.18.2; `pip install --upgrade"),
        ("int x;", "expected the function OrtGetApiBase, found a library without it"),
    ] {
        stand_in(&library, code);
        for path in [&library, &scratch.path().to_owned()] {
            let message = error(path);
            assert!(message.contains(expected), "{message}");
            let start = format!("error: ONNX Runtime: {}: ", library.display());
            assert!(message.starts_with(&start), "{message}");
        }
    }
    std::fs::write(&library, "none").unwrap();
    let message = error(&library);
    assert!(message.contains("libonnxruntime.so.1: file too short"), "{message}");
    let message = error(&scratch.path().join("absent"));
    assert!(message.contains("found nothing; `pip install onnxruntime` brings it"), "{message}");
}

#[test]
fn models_without_weights_are_refused() {
    let mut command = onnx();
    let message = error_line(command.arg("-m").arg(testdata("phi-tiny-moe")));
    assert!(message.contains("model-00001-of-00002.safetensors: cannot open"), "{message}");
    // An export whose weights were left behind.
    let scratch = scratch("no-data");
    let export = scratch.path().join("onnx");
    assert!(tandem().arg("export-onnx").arg(&export).output().unwrap().status.success());
    std::fs::remove_file(export.join("model.onnx.data")).unwrap();
    let mut command = onnx();
    let message = error_line(command.arg("-m").arg(&export));
    assert!(message.contains("model.onnx.data: cannot open"), "{message}");
    let mut command = onnx();
    let message = error_line(command.arg("--no-sliding-window").arg("-m").arg(&export));
    assert!(message.contains("an export has its window in its graph"), "{message}");
}

/// A file size limit stands in for a full disk.
#[test]
fn a_full_disk_leaves_nothing_of_an_export_for_the_run() {
    let scratch = scratch("full-disk");
    let script = format!(
        "ulimit -f 2000; trap '' XFSZ; exec '{}' run hi --backend onnxruntime --onnxruntime '{}'",
        env!("CARGO_BIN_EXE_tandem"),
        onnxruntime_library().display(),
    );
    let mut sh = Process::new("sh");
    let output = sh.args(["-c", &script]).env("TMPDIR", scratch.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let message = stderr(&output);
    assert!(message.contains("model.onnx.data: cannot write"), "{message}");
    assert!(message.contains("`tandem export-onnx` writes it wherever there is room"), "{message}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left");
}

/// oneDNN on request, as measured, and where it is not found.
#[test]
fn onednn_reads_prompts_where_it_is_asked_to_or_measured_to_be_faster() {
    let config = scratch("onednn-config");
    let long = "Once upon a time there was a little dragon. ".repeat(8);
    let run = |more: &[&str]| {
        let mut command = tandem();
        command.args(["run", "--raw", &long, "--temp", "0", "-n", "16", "--placement", "cpu"]);
        command.env("XDG_CONFIG_HOME", config.path()).env("TANDEM_ONEDNN", onednn_library());
        let output =
            command.args(more).args(["--kv-type", "f32", "-m"]).arg(stories_bf16()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        (stdout(&output), stderr(&output))
    };
    let (text, notes) = run(&[]);
    assert!(!notes.contains("oneDNN"), "nothing is measured: {notes}");
    let (by_onednn, notes) = run(&["--prefill-backend", "onednn"]);
    assert_eq!(by_onednn, text);
    assert!(notes.contains(", prompts by oneDNN 3.2.0 ("), "{notes}");

    let mut calibrate = tandem();
    calibrate
        .args(["calibrate", "--quick", "--json", "--kv-type", "f32", "-m"])
        .arg(stories_bf16());
    calibrate.env("XDG_CONFIG_HOME", config.path()).env("TANDEM_ONEDNN", onednn_library());
    let measured = answer(&mut calibrate);
    let prefill = &measured["prefill"];
    assert_eq!(prefill["identity"]["driver"], "3.2.0");
    assert_eq!(prefill["tandem"].as_array().unwrap().len(), 3);
    // Whatever was faster here: the file is changed to say that oneDNN is, and then that it is not.
    let file = config.path().join("tandem/calibration");
    let entries = std::fs::read_dir(&file).unwrap().map(|entry| entry.unwrap().path());
    let file = entries.into_iter().find(|path| path.to_string_lossy().contains("onednn")).unwrap();
    for (rate, is_used) in [(1e9, true), (1e-9, false)] {
        let mut rates: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        rates["onednn"] = vec![rate; 3].into();
        std::fs::write(&file, rates.to_string()).unwrap();
        let (_, notes) = run(&[]);
        assert_eq!(notes.contains("prompts by oneDNN"), is_used, "{notes}");
        let (_, notes) = run(&["--prefill-backend", "tandem"]);
        assert!(!notes.contains("oneDNN"), "{notes}");
    }

    let mut command = tandem();
    command.args(["run", "hi", "--prefill-backend", "onednn", "--onednn"]);
    let message = error_line(command.arg(config.path()));
    assert!(message.contains("--prefill-backend onednn: oneDNN: "), "{message}");
    assert!(message.contains("found a folder without it; `apt-get install libdnnl2`"), "{message}");
}
