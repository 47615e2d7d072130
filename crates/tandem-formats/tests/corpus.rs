//! The fuzzer's seeds, and every input that ever broke a parser, as an ordinary test.

use std::path::Path;

use tandem_formats::{FormatError, gguf, safetensors};
use tandem_testkit::fuzz_inputs;

/// Feeds all inputs of a fuzz target to `parse`; returns how many were accepted and refused.
fn feed(target: &str, parse: impl Fn(&Path, &[u8]) -> Result<(), FormatError>) -> (usize, usize) {
    let mut counts = (0, 0);
    for (path, bytes) in fuzz_inputs(target) {
        match parse(&path, &bytes) {
            Ok(()) => counts.0 += 1,
            Err(e) => {
                let message = e.to_string();
                assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
                assert!(!message.contains('\n'), "{message}");
                counts.1 += 1;
            }
        }
    }
    counts
}

#[test]
fn gguf_inputs() {
    let (accepted, refused) = feed("gguf", |path, bytes| {
        gguf::parse_header(path, &mut &bytes[..], bytes.len() as u64).map(drop)
    });
    assert!(accepted >= 5 && refused >= 4, "{accepted} accepted, {refused} refused");
}

#[test]
fn safetensors_inputs() {
    let (accepted, refused) = feed("safetensors", |path, bytes| {
        safetensors::parse_header(path, &mut &bytes[..], bytes.len() as u64).map(drop)
    });
    assert!(accepted >= 3 && refused >= 5, "{accepted} accepted, {refused} refused");
}
