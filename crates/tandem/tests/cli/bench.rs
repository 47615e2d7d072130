//! `tandem bench`, led by another program. What a figure is, tests cannot know; that it is one, they can.

use serde_json::Value;

use crate::{error_line, random_model, stderr, stdout, tandem};

#[test]
fn tests_from_stdin_are_answered_line_by_line() {
    let output = tandem()
        .args(["bench", "--stdin", "-t", "2", "-c", "16", "-m"])
        .arg(random_model())
        .write_stdin("prepare pp 8 0\ntime\nprepare tg 4 8\ntime\ntime\nbandwidth\n")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let answers: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 7, "{text}");
    assert_eq!(answers[0]["program"], "Tandem");
    let inspected =
        tandem().args(["inspect", "--json", "-m"]).arg(random_model()).output().unwrap();
    let inspected: Value = serde_json::from_str(&stdout(&inspected)).unwrap();
    let bytes = |value: &Value| value["bytes_per_token"].as_u64().unwrap();
    assert_eq!(bytes(&answers[0]), bytes(&inspected["total"]), "{inspected}");
    for n in [1, 3] {
        assert_eq!(answers[n]["ready"], true, "{text}");
    }
    for n in [2, 4, 5] {
        assert!(answers[n]["seconds"].as_f64().unwrap() > 0.0, "{text}");
    }
    assert!(answers[6]["bytes_per_second"].as_f64().unwrap() > 0.0, "{text}");
}

#[test]
fn lines_that_make_no_sense_end_the_bench() {
    let refused = |line: &str, part: &str| {
        let mut command = tandem();
        command.args(["bench", "--stdin", "-c", "16", "-m"]).arg(random_model());
        let message = error_line(command.write_stdin(format!("{line}\n")));
        assert!(message.contains(part), "{line}: {message}");
    };
    refused("time", "expected `prepare` before it");
    refused("prepare pp 0 0", "at least one token, found `pp 0`");
    refused("prepare xx 4 0", "expected pp or tg");
    refused("prepare tg four 0", "expected a number of tokens, found `four`");
    refused("prepare tg 8 9", "16");
    refused("sing", "found `sing`");
}
