//! `tandem run`.

use std::io::Read;
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use tandem_golden::{stories, stories_bf16, stories_endless};

use crate::{error_line, random_model, stderr, stdout, tandem};

const PROMPT: &str = "Tell me a short story about a dragon named Max.";

#[test]
fn the_first_command_of_the_readme_prints_a_story_about_max() {
    let output = tandem().args(["run", PROMPT, "--seed", "1"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let story = stdout(&output);
    assert!(story.contains("Max") && story.split_whitespace().count() > 60, "{story}");
    assert!(story.ends_with('\n') && !story.contains("<|"), "{story}");
    let statistics = stderr(&output);
    for part in ["on the CPU", "load ", "prompt ", "decode ", "tokens/s", "peak memory"] {
        assert!(statistics.contains(part), "{part} in {statistics}");
    }
}

#[test]
fn greedy_text_is_the_references() {
    let golden = stories();
    let model = stories_bf16();
    // p1 is the chat prompt of the demo.
    let prompt = golden.iter().find(|p| p.ids.len() == 18).unwrap();
    let n = prompt.greedy.len().to_string();
    let output = tandem()
        .args(["run", PROMPT, "--temp", "0", "--json", "--kv-type", "f32", "-n", &n, "-m"])
        .arg(&model)
        .output()
        .unwrap();
    let answer: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let ids = |key: &str| -> Vec<u32> { serde_json::from_value(answer[key].clone()).unwrap() };
    assert_eq!(ids("prompt_ids"), prompt.ids);
    // The reference's list ends with the stop id; an answer does not contain it.
    let (stop, text) = prompt.greedy.split_last().unwrap();
    assert_eq!(*stop, 3);
    assert_eq!(ids("ids"), text);
    assert_eq!(answer["finish_reason"], "stop");
}

#[test]
fn a_seed_gives_one_text_and_the_environment_sets_options() {
    let story = |seed: &str| {
        stdout(
            &tandem()
                .args(["run", PROMPT, "-n", "40"])
                .env("TANDEM_SEED", seed)
                .env("TANDEM_TEMP", "1")
                .output()
                .unwrap(),
        )
    };
    assert_eq!(story("5"), story("5"));
    assert_ne!(story("5"), story("6"));
}

#[test]
fn the_prompt_comes_from_stdin_too() {
    let from = |stdin: &str, args: &[&str]| {
        let output = tandem()
            .arg("run")
            .args(args)
            .args(["--temp", "0", "-n", "12"])
            .write_stdin(stdin)
            .output();
        stdout(&output.unwrap())
    };
    let argument =
        stdout(&tandem().args(["run", PROMPT, "--temp", "0", "-n", "12"]).output().unwrap());
    assert_eq!(from(&format!("{PROMPT}\n"), &[]), argument);
    assert_eq!(from(PROMPT, &["-"]), argument);
}

#[test]
fn raw_text_goes_on_where_it_stopped() {
    let output = tandem()
        .args(["run", "--raw", "Once upon a time, there was", "--temp", "0", "-n", "5"])
        .output();
    let text = stdout(&output.unwrap());
    assert!(
        text.starts_with(' '),
        "the space between prompt and text is part of the text: {text:?}"
    );
}

#[test]
fn stop_strings_end_the_text_and_are_not_shown() {
    let output = tandem().args(["run", PROMPT, "--temp", "0", "--stop", "named"]).output().unwrap();
    let text = stdout(&output);
    assert!(text.starts_with("Once upon a time") && !text.contains("named"), "{text}");
}

#[test]
fn no_tokens_are_no_text() {
    let output = tandem().args(["run", PROMPT, "-n", "0"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("decode 0 tokens"), "{}", stderr(&output));
}

#[test]
fn empty_prompts_and_overlong_ones_are_errors() {
    let message = error_line(tandem().args(["run", ""]));
    assert_eq!(message, "error: the prompt is empty: give some text as an argument or on stdin");
    let message = error_line(tandem().arg("run").write_stdin("\n"));
    assert_eq!(message, "error: the prompt is empty: give some text as an argument or on stdin");
    let message = error_line(tandem().arg("run").write_stdin("word ".repeat(600)));
    assert!(message.contains("but the context holds only 512: shorten the prompt"), "{message}");
    let message = error_line(tandem().args(["run", PROMPT, "--ctx", "10"]));
    assert_eq!(
        message,
        "error: the prompt has 18 tokens, but the context holds only 10: shorten the prompt"
    );
    let message = error_line(tandem().args(["run", PROMPT, "--ctx", "4096"]));
    assert!(message.contains("--ctx: expected at most 512"), "{message}");
}

#[test]
fn a_full_context_ends_the_text_and_says_so() {
    let output = tandem().args(["run", PROMPT, "--temp", "0", "--ctx", "40"]).output().unwrap();
    assert!(output.status.success());
    assert!(stderr(&output).contains("context of 40 tokens is full"), "{}", stderr(&output));
}

#[test]
fn unknown_models_and_missing_tokenizers_say_what_to_do() {
    let message = error_line(tandem().args(["run", PROMPT, "-m", "no/such/model.gguf"]));
    assert!(
        message.contains("no such file or folder; expected a .gguf file, a folder"),
        "{message}"
    );
    let message = error_line(tandem().args(["run", PROMPT, "-m"]).arg(random_model()));
    assert!(
        message.contains("tokenizer: expected tokenizer.json in the folder, found none"),
        "{message}"
    );
    let offline = tandem_testkit::scratch("hub-cache");
    let message = error_line(
        tandem().args(["run", PROMPT, "-m", "org/absent"]).env("HF_HOME", offline.path()),
    );
    assert!(message.contains("org/absent") && message.contains("HF_HUB_OFFLINE"), "{message}");
}

#[test]
fn bad_sampling_parameters_are_named_before_the_model_is_loaded() {
    let message = error_line(tandem().args(["run", PROMPT, "--top-p", "1.5"]));
    assert_eq!(message, "error: top_p: expected more than 0, at most 1, found 1.5");
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    let mut child = Process::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["run", PROMPT, "--temp", "0", "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_closed_stderr_does_not_stop_the_text() {
    let mut child = Process::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["run", PROMPT, "--temp", "0", "-n", "8"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert!(stdout(&output).starts_with("Once upon a time"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_text_with_the_usual_exit_code() {
    let mut child = Process::new(env!("CARGO_BIN_EXE_tandem"))
        .args([
            "run", "--raw", "Once", "--temp", "1.5", "--top-k", "0", "--top-p", "1", "--min-p",
            "0", "-t", "1", "-m",
        ])
        .arg(stories_endless())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let asked = Instant::now();
    let kill = Process::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("peak memory"), "statistics are shown: {}", stderr(&output));
    // Far from what 4096 tokens would take.
    assert!(asked.elapsed() < Duration::from_secs(20));
}
