//! The program as a user meets it: run as a process, with its output and exit codes looked at.

mod backends;
mod bench;
mod chat;
mod convert;
mod devices;
mod gpu;
mod logits;
mod onnx;
mod other;
mod plan;
mod policies;
mod run;
mod scheduler;
mod telemetry;
mod threads;

use std::path::PathBuf;
use std::process::Output;

use assert_cmd::Command;
use tandem_testkit::testdata;

/// The program, with an environment that nothing of the machine's shines through.
fn tandem() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TANDEM_")) {
        command.env_remove(name);
    }
    command.env("HF_HUB_OFFLINE", "1").env_remove("RUST_BACKTRACE");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

/// The one line that a failed command prints.
fn error_line(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = stderr(&output);
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one line of error in {text:?}");
    assert_eq!(text.lines().last(), errors.last().copied(), "the error comes last in {text:?}");
    errors[0].to_owned()
}

/// The small random model, which has no tokenizer.
fn random_model() -> PathBuf {
    testdata("golden/model")
}
