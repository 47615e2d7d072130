//! Any bytes are a tokenizer_config.json, a chat template, or an error; and a template stays within its budget, or the
//! fuzzer's limits on time and memory end the run.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tandem_model::chat::Message;
use tandem_model::tokenizer::TokenizerConfig;

fuzz_target!(|data: &[u8]| {
    let config = match TokenizerConfig::from_json_bytes(Path::new("fuzzed.json"), data) {
        Ok(config) => config,
        // Models bring the template in a file of its own, too. Bare, it is also what a fuzzer has an easier time with.
        Err(_) => match std::str::from_utf8(data) {
            Ok(source) => TokenizerConfig {
                chat_template: Some(source.to_owned()),
                bos_token: Some("<s>".to_owned()),
                ..TokenizerConfig::default()
            },
            Err(_) => return,
        },
    };
    match config.compile_chat_template() {
        Ok(Some(template)) => {
            let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
            let messages = [message("system", "Be brief."), message("user", "Hi <there>\n")];
            // Once only: a template that uses up its budget is slow enough under a sanitizer.
            if let Err(e) = template.render(&messages, data.len().is_multiple_of(2)) {
                one_line(&e.to_string());
            }
        }
        Ok(None) => {}
        Err(e) => one_line(&e.to_string()),
    }
});

fn one_line(message: &str) {
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.len() < 4096, "{} bytes", message.len());
}
