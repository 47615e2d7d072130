// What the fuzz target `tokenizer_config` checks of an input; see `config.rs`.

use std::path::Path;

use tandem_model::chat::Message;
use tandem_model::tokenizer::TokenizerConfig;

/// Reads the input as a `tokenizer_config.json`, else as a bare template, and renders two messages; answers whether
/// all of that went well.
pub(crate) fn accepts(data: &[u8]) -> bool {
    let config = match TokenizerConfig::from_json_bytes(Path::new("fuzzed.json"), data) {
        Ok(config) => config,
        Err(e) => {
            one_line(&e.to_string());
            // Models bring the template in a file of its own, too, and a fuzzer has an easier time with it.
            let Ok(source) = std::str::from_utf8(data) else { return false };
            TokenizerConfig {
                chat_template: Some(source.to_owned()),
                bos_token: Some("<s>".to_owned()),
                ..TokenizerConfig::default()
            }
        }
    };
    let message =
        |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let messages = [message("system", "Be brief."), message("user", "Hi <there>\n")];
    let rendered = config.compile_chat_template().and_then(|template| {
        // Once only: a template that uses up its budget is slow enough under a sanitizer.
        template.map(|t| t.render(&messages, data.len().is_multiple_of(2))).transpose()
    });
    rendered.as_ref().err().into_iter().for_each(|e| one_line(&e.to_string()));
    rendered.is_ok()
}

fn one_line(message: &str) {
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.len() < 2000, "{message}");
}
