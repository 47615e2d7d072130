//! Token ids to text, one id at a time.
//!
//! A token need not be whole characters: byte-level vocabularies cut anywhere, and SentencePiece ones spell what
//! they lack as `<0xE2>` `<0x82>` `<0xAC>`. Decoding the ids so far and showing what is new (as the tokenizer
//! library's stream does) shows a replacement character and then takes it back, or fails. So a token is turned into
//! *bytes* here, and text is handed out up to the last complete character. The whole-text [`Tokenizer::decode`] is
//! the same code, so the two cannot differ.
//!
//! It gives what the library's `decode` gives, with one intended difference: in a run of byte tokens that is not
//! valid UTF-8 the library replaces every byte of the run, valid characters included, which no stream could honour
//! without holding back a whole row of emoji. Here only what is invalid is replaced.

use std::path::Path;

use serde_json::Value;
use tandem_formats::FormatError;

use crate::tokenizer::Tokenizer;
use crate::{ModelError, Result};

/// Whether special tokens such as `<|end|>` appear in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// They do, as the vocabulary spells them.
    Keep,
    /// They are left out.
    Skip,
}

/// Turns a stream of ids into a stream of text.
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    special: Special,
    /// No token has been decoded yet.
    at_start: bool,
    /// How many more leading characters [`PieceDecoder::strip`] may take.
    strip_left: usize,
    /// The bytes of an incomplete character, at most three.
    pending: Vec<u8>,
}

impl<'a> Detokenizer<'a> {
    /// A stream that has seen no ids.
    pub fn new(tokenizer: &'a Tokenizer, special: Special) -> Self {
        let strip_left = tokenizer.pieces().strip.map_or(0, |(_, count)| count);
        Self { tokenizer, special, at_start: true, strip_left, pending: Vec::new() }
    }

    /// Takes the next id; gives the text that it completes, if any. An id without a token gives nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.special == Special::Skip && self.tokenizer.is_special(id) {
            return None;
        }
        let token = self.tokenizer.token(id)?;
        self.tokenizer.pieces().append(&token, self.at_start, &mut self.pending);
        self.at_start = false;
        let mut text = String::new();
        let kept = take_complete(&self.pending, &mut text);
        self.pending.drain(..self.pending.len() - kept);
        self.strip(text)
    }

    /// Ends the stream: what was held back as an incomplete character, as U+FFFD.
    pub fn finish(&mut self) -> Option<String> {
        let incomplete = std::mem::take(&mut self.pending);
        (!incomplete.is_empty()).then(|| char::REPLACEMENT_CHARACTER.to_string())
    }

    fn strip(&mut self, mut text: String) -> Option<String> {
        while self.strip_left > 0 && !text.is_empty() {
            let stripped = self.tokenizer.pieces().strip.is_some_and(|(c, _)| text.starts_with(c));
            if stripped {
                text.remove(0);
                self.strip_left -= 1;
            } else {
                self.strip_left = 0;
            }
        }
        (!text.is_empty()).then_some(text)
    }
}

/// Appends the complete characters of `bytes` to `text`, and U+FFFD for what can no longer become one (one for each
/// maximal invalid part, as the Unicode standard recommends). Returns how many bytes at the end are incomplete.
fn take_complete(mut bytes: &[u8], text: &mut String) -> usize {
    loop {
        match str::from_utf8(bytes) {
            Ok(valid) => {
                text.push_str(valid);
                return 0;
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                let Some(invalid) = error.error_len() else {
                    return rest.len();
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid..];
            }
        }
    }
}

/// How a vocabulary spells bytes of text: the `decoder` of a `tokenizer.json`.
#[derive(Debug, PartialEq)]
pub(crate) struct PieceDecoder {
    spelling: Spelling,
    /// The character, and how many of it, removed from the start of the whole text.
    strip: Option<(char, usize)>,
}

#[derive(Debug, PartialEq)]
enum Spelling {
    /// One character for each byte, as GPT-2 has it.
    ByteLevel,
    /// Text with replacements (`▁` for a space), and maybe `<0xNN>` for a byte.
    Pieces { replace: Vec<(String, String)>, byte_fallback: bool },
    /// A character for a space; left out of the text's first token if so asked.
    Metaspace { replacement: char, drop_at_start: bool },
}

impl PieceDecoder {
    /// The decoder of a loaded tokenizer.
    pub(crate) fn new(path: &Path, tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        // The library keeps its decoders' fields to itself; their JSON form is public and stable.
        let json = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|e| ModelError::tokenizer(path, e))?;
        let steps = match json["decoders"].as_array() {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(&json),
        };
        Self::from_steps(steps).ok_or_else(|| {
            let expected = "ByteLevel, Metaspace or [Replace.., ByteFallback, Fuse, Strip]";
            FormatError::invalid(path, "decoder", expected, json.to_string()).into()
        })
    }

    fn from_steps(steps: &[Value]) -> Option<Self> {
        match steps {
            [step] if step["type"] == "ByteLevel" => {
                Some(Self { spelling: Spelling::ByteLevel, strip: None })
            }
            [step] if step["type"] == "Metaspace" => {
                let replacement = single_char(&step["replacement"])?;
                let drop_at_start = step["prepend_scheme"] != "never";
                Some(Self {
                    spelling: Spelling::Metaspace { replacement, drop_at_start },
                    strip: None,
                })
            }
            _ => Self::from_pieces(steps),
        }
    }

    /// The chain of SentencePiece-like vocabularies. The order matters: replacements come before bytes (else a byte
    /// could become a replacement's text), and only a strip after the fuse concerns the whole text.
    fn from_pieces(steps: &[Value]) -> Option<Self> {
        let (mut replace, mut byte_fallback, mut fused, mut strip) =
            (Vec::new(), false, false, None);
        for step in steps {
            match step["type"].as_str()? {
                "Replace" if !byte_fallback && !fused => {
                    let from =
                        step["pattern"]["String"].as_str().filter(|from| !from.is_empty())?;
                    replace.push((from.to_owned(), step["content"].as_str()?.to_owned()));
                }
                "ByteFallback" if !fused => byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && strip.is_none() && step["stop"] == 0 => {
                    strip = Some((
                        single_char(&step["content"])?,
                        usize::try_from(step["start"].as_u64()?).ok()?,
                    ));
                }
                _ => return None,
            }
        }
        (!steps.is_empty())
            .then_some(Self { spelling: Spelling::Pieces { replace, byte_fallback }, strip })
    }

    /// Whether tokens are spelt in GPT-2's byte alphabet.
    pub(crate) fn is_byte_level(&self) -> bool {
        self.spelling == Spelling::ByteLevel
    }

    /// Whether a space at the start of a text is the encoder's doing.
    pub(crate) fn drops_leading_space(&self) -> bool {
        self.strip.is_some()
            || matches!(self.spelling, Spelling::Metaspace { drop_at_start: true, .. })
    }

    /// Whether a token is the spelling of a byte, such as `<0x0A>`.
    pub(crate) fn is_fallback_byte(&self, token: &str) -> bool {
        matches!(self.spelling, Spelling::Pieces { byte_fallback: true, .. })
            && fallback_byte(token).is_some()
    }

    /// Appends the bytes that a token stands for.
    pub(crate) fn append(&self, token: &str, at_start: bool, out: &mut Vec<u8>) {
        match &self.spelling {
            Spelling::ByteLevel => match token.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
                Some(bytes) => out.extend(bytes),
                // Added tokens are spelt as plain text.
                None => out.extend(token.as_bytes()),
            },
            Spelling::Pieces { replace, byte_fallback } => {
                let mut text = token.to_owned();
                for (from, to) in replace {
                    text = text.replace(from, to);
                }
                match byte_fallback.then(|| fallback_byte(&text)).flatten() {
                    Some(byte) => out.push(byte),
                    None => out.extend(text.as_bytes()),
                }
            }
            Spelling::Metaspace { replacement, drop_at_start } => {
                let space = if at_start && *drop_at_start { "" } else { " " };
                out.extend(token.replace(*replacement, space).as_bytes());
            }
        }
    }
}

fn single_char(value: &Value) -> Option<char> {
    let mut chars = value.as_str()?.chars();
    chars.next().filter(|_| chars.next().is_none())
}

/// The byte that a token such as `<0x0A>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The byte that a character of GPT-2's byte-level alphabet stands for. Printable characters of Latin-1 stand for
/// themselves; the other bytes follow in order from U+0100.
fn byte_of(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        c @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => c,
        c @ 0x100..=0x120 => c - 0x100,
        c @ 0x121..=0x142 => c - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}
