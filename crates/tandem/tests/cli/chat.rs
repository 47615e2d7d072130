//! `tandem chat`, through a terminal of its own.
#![cfg(unix)]

use std::path::Path;
use std::process::Command;

use rexpect::session::{PtySession, spawn_command};
use tandem_golden::stories_endless;
use tandem_testkit::scratch;

use crate::{stdout, tandem};

/// Much longer than anything takes; a failed expectation ends sooner with the program.
const TIMEOUT_MS: u64 = 60_000;

fn chat(home: &Path, args: &[&str]) -> PtySession {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    command
        .arg("chat")
        .args(args)
        .env("HOME", home)
        .env("XDG_STATE_HOME", home)
        .env("TERM", "xterm");
    spawn_command(command, Some(TIMEOUT_MS)).expect("a terminal")
}

#[test]
fn a_conversation_with_commands_and_history() {
    let home = scratch("chat");
    let mut terminal = chat(home.path(), &["--temp", "0", "--stats"]);
    terminal.exp_string("> ").unwrap();
    terminal.send_line("Tell me a short story about a dragon named Max.").unwrap();
    terminal.exp_string("Once upon a time, there was a little dragon named Max.").unwrap();
    terminal.exp_string("tokens/s").unwrap();
    terminal.exp_string("> ").unwrap();
    terminal.send_line("/nonsense").unwrap();
    terminal.exp_string("/nonsense: no such command").unwrap();
    terminal.send_line("/system You tell stories about cats.").unwrap();
    terminal.exp_string("(a new conversation)").unwrap();
    terminal.send_line("/reset").unwrap();
    terminal.exp_string("(forgotten)").unwrap();
    terminal.send_control('c').unwrap();
    terminal.exp_string("(Ctrl-D leaves)").unwrap();
    terminal.send_line("/exit").unwrap();
    terminal.exp_eof().unwrap();
    let history = std::fs::read_to_string(home.path().join("tandem/history.txt")).unwrap();
    assert!(history.contains("Tell me a short story") && history.contains("/reset"), "{history}");
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let home = scratch("chat-interrupt");
    let model = stories_endless();
    let mut terminal = chat(
        home.path(),
        &[
            "--temp",
            "1.5",
            "--top-k",
            "0",
            "--top-p",
            "1",
            "--min-p",
            "0",
            "-t",
            "1",
            "-m",
            model.to_str().unwrap(),
        ],
    );
    terminal.exp_string("> ").unwrap();
    terminal.send_line("Tell me a story.").unwrap();
    // The echo of the question comes first; a line break ends it.
    terminal.exp_string("Tell me a story.").unwrap();
    terminal.exp_regex("[a-zA-Z]{3} [a-z]").unwrap();
    terminal.send_control('c').unwrap();
    terminal.exp_string("(stopped)").unwrap();
    terminal.exp_string("> ").unwrap();
    terminal.send_control('d').unwrap();
    terminal.exp_eof().unwrap();
}

#[test]
fn a_conversation_from_a_pipe() {
    let home = scratch("chat-pipe");
    let output = tandem()
        .args(["chat", "--temp", "0", "-n", "8"])
        .env("HOME", home.path())
        .env("XDG_STATE_HOME", home.path())
        .write_stdin("Tell me a short story about a dragon named Max.\n/exit\n")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(stdout(&output).contains("Once upon a time"), "{}", stdout(&output));
}

#[test]
fn a_conversation_too_long_for_the_context_is_not_the_end() {
    let home = scratch("chat-long");
    let mut terminal = chat(home.path(), &["--temp", "0", "-n", "4", "--ctx", "40"]);
    terminal.exp_string("> ").unwrap();
    terminal.send_line(&"word ".repeat(60)).unwrap();
    terminal.exp_string("/reset begins a new one").unwrap();
    terminal.exp_string("> ").unwrap();
    terminal.send_line("Tell me a story.").unwrap();
    terminal.exp_string("> ").unwrap();
    terminal.send_line("/exit").unwrap();
    terminal.exp_eof().unwrap();
}
