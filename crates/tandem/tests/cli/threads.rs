//! How many threads, and where.

use crate::{stderr, stdout, tandem};

const RUN: [&str; 6] = ["run", "Tell me a story.", "-n", "12", "--temp", "0"];

/// CPUs that this process may use.
fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

#[test]
fn threads_make_no_difference_to_the_text() {
    let run = |args: &[&str]| {
        let output = tandem().args(RUN).args(args).output().unwrap();
        (stdout(&output), stderr(&output))
    };
    let (expected, note) = run(&["-t", "1"]);
    assert!(expected.split_whitespace().count() > 5, "{expected}");
    assert!(note.contains("on the CPU with 1 thread ("), "{note}");
    let more = (cpus() + 1).to_string();
    for (args, part) in [
        (&["-t", "1", "--threads-batch", "2"][..], "with 1 thread (2 for prompts)"),
        (&["-t", "3", "--threads-batch", "1"], "with 3 threads (1 for prompts)"),
        (&["-t", "1", "--pin"], "with 1 thread, each bound to a CPU"),
        // A note, and no error.
        (
            &["-t", &more, "--pin"],
            "--pin: threads are not bound to CPUs: CPUs: expected one for each",
        ),
    ] {
        let (text, note) = run(args);
        assert_eq!(text, expected, "{args:?}");
        assert!(note.contains(part), "{args:?}: {note}");
    }
    let output = tandem()
        .args(RUN)
        .envs([("TANDEM_THREADS", "1"), ("TANDEM_THREADS_BATCH", "2"), ("TANDEM_PIN", "1")])
        .output()
        .unwrap();
    let part = if cpus() > 1 { "(2 for prompts), each bound" } else { "(2 for prompts)" };
    assert!(stderr(&output).contains(part), "{}", stderr(&output));
    assert_eq!(stdout(&output), expected);
}

#[test]
fn bench_counts_barriers() {
    let bench = |args: &[&str]| {
        let output = tandem()
            .args(["bench", "-p", "20", "-n", "3", "-r", "1", "-c", "64"])
            .args(args)
            .output();
        stdout(&output.unwrap())
    };
    let rows = |text: &str| -> Vec<serde_json::Value> { serde_json::from_str(text).unwrap() };
    let shared = rows(&bench(&["-t", "2", "--threads-batch", "3", "-o", "json"]));
    assert_eq!(shared[0]["threads"], 3);
    assert!(shared[0]["barriers_per_token"].is_null());
    assert_eq!(shared[1]["threads"], 2);
    // Every layer has projections at least that are worth sharing, and so has the end.
    let layers = 6;
    let barriers = shared[1]["barriers_per_token"].as_f64().unwrap();
    assert!(barriers > f64::from(layers) && barriers.fract() == 0.0, "{barriers}");
    assert_eq!(rows(&bench(&["-t", "1", "-o", "json"]))[1]["barriers_per_token"], 0.0);

    let csv = bench(&["-t", "2", "-o", "csv"]);
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let column = lines[0].iter().position(|name| *name == "barriers_per_token").unwrap();
    assert_eq!(lines[2][column], format!("{barriers:.1}"));
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{csv}");
    let table = bench(&["-t", "2"]);
    assert!(table.lines().next().unwrap().contains("| barriers |"), "{table}");
}

#[test]
fn bench_of_several_texts_at_a_time() {
    let bench = |form| {
        let output = tandem()
            .args(["bench", "-p", "8", "-n", "3", "-r", "1", "-c", "64", "-t", "2"])
            .args(["--sequences", "1,3", "-o", form])
            .output();
        stdout(&output.unwrap())
    };
    let rows: Vec<serde_json::Value> = serde_json::from_str(&bench("json")).unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp8", "tg3", "tg3 x 3"]);
    let bytes = |row: usize| rows[row]["bytes_per_token"].as_f64().unwrap();
    // Dense weights are read once for three tokens, experts as often as they are chosen.
    assert!(bytes(2) < bytes(1) && 3.0 * bytes(2) > bytes(1), "{} {}", bytes(1), bytes(2));
    let table = bench("md");
    assert!(table.lines().next().unwrap().contains("| t/s each |"), "{table}");
    let csv = bench("csv");
    let column = csv.lines().next().unwrap().split(',').position(|name| name == "sequences");
    assert_eq!(csv.lines().nth(3).unwrap().split(',').nth(column.unwrap()), Some("3"), "{csv}");
}
