//! The fuzzer's seeds, and every input that ever failed, as an ordinary test: through the very checks of the fuzzer.

use tandem_testkit::fuzz_inputs;

#[path = "../../../fuzz/checks/config.rs"]
mod config;
#[path = "../../../fuzz/checks/tokenizer_config.rs"]
mod tokenizer_config;

/// How many inputs of a target are accepted and refused.
fn feed(target: &str, accepts: fn(&[u8]) -> bool) -> (usize, usize) {
    let inputs = fuzz_inputs(target);
    let accepted = inputs.iter().filter(|(_, bytes)| accepts(bytes)).count();
    (accepted, inputs.len() - accepted)
}

#[test]
fn config_inputs() {
    let (accepted, refused) = feed("config", config::accepts);
    assert!(accepted >= 9 && refused >= 3, "{accepted} accepted, {refused} refused");
}

#[test]
fn tokenizer_config_inputs() {
    let (accepted, refused) = feed("tokenizer_config", tokenizer_config::accepts);
    assert!(accepted >= 12 && refused >= 4, "{accepted} accepted, {refused} refused");
}
