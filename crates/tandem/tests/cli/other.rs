//! `inspect`, `tokenize`, `completions`, and help.

use tandem_golden::stories_bf16;

use crate::{error_line, random_model, stderr, stdout, tandem};

#[test]
fn inspect_says_what_a_model_is() {
    let output = tandem().args(["inspect", "--json"]).arg(stories_bf16()).output().unwrap();
    let found: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(found["total"]["weights"], 17_275_136);
    assert_eq!(
        found["config"]["router_jitter_noise"].as_f64().map(|x| (x * 10.0).round()),
        Some(4.0)
    );
    // Attention and lm_head, router, norms and biases whole, an embedding row, and 2 of 16 experts.
    let per_token = 983_040 + 1_048_576 + 24_576 + 6_656 + 7_936 + 256 + 14_155_776 / 8;
    assert_eq!(found["total"]["weights_per_token"], per_token);
    assert_eq!(found["total"]["bytes_per_token"], 2 * per_token);
    let text = stdout(&tandem().arg("inspect").output().unwrap());
    for part in ["layers", "experts", "q8_0", "bytes/token", "4096 tokens, with a chat template"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = stdout(&tandem().arg("inspect").arg(random_model()).output().unwrap());
    assert!(text.contains("tokenizer        none"), "{text}");
}

#[test]
fn text_to_ids_and_back() {
    let text = "Héllo 🐉 dragon";
    let ids = stdout(&tandem().args(["tokenize", "--ids", text]).output().unwrap());
    let back = stdout(&tandem().args(["tokenize", "--decode", ids.trim()]).output().unwrap());
    assert_eq!(back, format!("{text}\n"));
    let message = error_line(tandem().args(["tokenize", "--decode", "1,two"]));
    assert!(message.contains("token id: expected a number, found `two`"), "{message}");
}

#[test]
fn completions_name_every_command() {
    let script = stdout(&tandem().args(["completions", "bash"]).output().unwrap());
    for command in ["run", "chat", "inspect", "quantize", "tokenize", "perplexity", "logits"] {
        assert!(script.contains(command), "{command}");
    }
}

#[test]
fn every_command_and_option_has_help() {
    let all = stdout(&tandem().arg("--help").output().unwrap());
    for command in
        ["run", "chat", "inspect", "quantize", "tokenize", "perplexity", "logits", "completions"]
    {
        assert!(all.contains(command), "{command}");
        let help = stdout(&tandem().args([command, "--help"]).output().unwrap());
        assert!(help.contains("Usage: tandem"), "{command}: {help}");
    }
    let run = stdout(&tandem().args(["run", "--help"]).output().unwrap());
    for option in [
        "--max-tokens",
        "--temp",
        "--top-k",
        "--top-p",
        "--min-p",
        "--seed",
        "--system",
        "--raw",
        "--threads",
        "--threads-batch",
        "--pin",
        "--json",
    ] {
        assert!(run.contains(option), "{option}");
    }
    let twins = [
        "TANDEM_MODEL",
        "TANDEM_MAX_TOKENS",
        "TANDEM_TEMP",
        "TANDEM_SEED",
        "TANDEM_THREADS",
        "TANDEM_THREADS_BATCH",
        "TANDEM_PIN",
        "TANDEM_RAW",
    ];
    for twin in twins {
        assert!(run.contains(twin), "{twin}");
    }
}

#[test]
fn flags_in_the_environment_are_what_people_write() {
    let run = |name: &str, value: &str| {
        tandem()
            .args(["run", "Tell me a story.", "-n", "2", "--temp", "0"])
            .env(name, value)
            .output()
            .unwrap()
    };
    for value in ["1", "true", "yes"] {
        assert!(stdout(&run("TANDEM_JSON", value)).starts_with('{'), "{value}");
        assert_eq!(stderr(&run("TANDEM_QUIET", value)), "", "{value}");
    }
    for value in ["0", "false", ""] {
        assert!(!stdout(&run("TANDEM_JSON", value)).starts_with('{'), "{value}");
    }
    let raw = tandem()
        .args(["run", "--raw", "Once upon", "-n", "2"])
        .env("TANDEM_SYSTEM", "You tell stories.")
        .output()
        .unwrap();
    assert!(raw.status.success(), "{}", stderr(&raw));
}

#[test]
fn numbers_out_of_range_are_refused_before_anything_else() {
    let refused = |args: &[&str], part: &str| {
        let output = tandem().args(["run", "x"]).args(args).output().unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}");
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
    };
    refused(&["-t", "1000000"], "expected 1 to 1024");
    refused(&["-t", "0"], "expected 1 to 1024");
    refused(&["--threads-batch", "0"], "expected 1 to 1024");
    refused(&["--temp", "-1"], "temperature: expected 0 or more, found -1");
    refused(&["--batch", "0"], "expected 1 or more");
}

#[test]
fn ids_without_a_token_cannot_be_decoded() {
    let message = error_line(tandem().args(["tokenize", "--decode", "5,999999"]));
    assert!(message.contains("token id 999999: expected an id that has a token"), "{message}");
}

#[test]
fn a_misspelt_option_is_met_with_the_right_one() {
    let output = tandem().args(["run", "--tempp", "1", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--temp"), "{}", stderr(&output));
}
