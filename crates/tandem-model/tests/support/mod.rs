//! What the text tests share: random texts, and Python on the other side.
#![allow(dead_code)] // each test file uses its part

use serde::de::DeserializeOwned;
use serde_json::Value;
use tandem_testkit::{Rng, run_python};

/// Runs a script that reads `request` as JSON from the file `sys.argv[1]` and prints its answer as JSON.
pub(crate) fn ask_python<T: DeserializeOwned>(script: &str, request: &Value) -> T {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    serde_json::to_writer(&file, request).expect("request is written");
    let answer = run_python(script, &[file.path().to_str().expect("UTF-8 path")]);
    serde_json::from_str(&answer).expect("the script prints JSON")
}

/// Pieces that tokenizers are known to stumble over.
const PARTS: [&str; 48] = [
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\u{a0}",
    "\u{3000}",
    "\u{200b}",
    "\u{feff}",
    "the",
    "Hello",
    "don't",
    "it's",
    "1234567",
    "3.14",
    "!!!",
    "...",
    "----------------",
    "(a+b)*c",
    "https://example.org/?q=1&r=2",
    "日本語",
    "中文字符",
    "한국어",
    "العربية",
    "हिन्दी",
    "Ελληνικά",
    "🙂",
    "👩\u{200d}👩\u{200d}👧",
    "🇩🇪",
    "e\u{301}",
    "a\u{308}\u{323}",
    "\0",
    "\u{1b}[0m",
    "\u{7f}",
    "<|user|>",
    "<|end|>",
    "<|assistant|>\n",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "\u{2581}",
    "Ġ",
    "<|",
    "𝔘𝔫𝔦",
];

/// Texts of up to 24 pieces, among them any Unicode character.
pub(crate) fn random_texts(seed: u64, count: usize) -> Vec<String> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| (0..rng.below(24)).map(|_| random_part(&mut rng)).collect()).collect()
}

fn random_part(rng: &mut Rng) -> String {
    match rng.below(4) {
        0 | 1 => PARTS[rng.below(PARTS.len())].to_owned(),
        2 => (0..1 + rng.below(8)).map(|_| char::from(0x20 + rng.below(0x5f) as u8)).collect(),
        // Surrogates are no characters.
        _ => char::from_u32(rng.below(0x11_0000) as u32).map(String::from).unwrap_or_default(),
    }
}
