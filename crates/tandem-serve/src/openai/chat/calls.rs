//! An answer's text, taken apart into what is said and which tools are called.

use serde_json::Value;
use tandem_grammar::{CALL_BEGINS, CALL_ENDS};

use crate::openai::new_id;

/// A part of an answer, as it comes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    /// Text.
    Text(String),
    /// A call begins.
    Call {
        /// The how manieth.
        index: usize,
        /// Its name for the answer to it.
        id: String,
        /// The function.
        name: String,
    },
    /// More of the arguments of the call that came last.
    Arguments {
        /// The how manieth call.
        index: usize,
        /// JSON, or a piece of it.
        text: String,
    },
}

/// Takes an answer apart. Calls are `<tool_call>{"name":NAME,"arguments":OBJECT}</tool_call>` with nothing in between, which
/// a grammar sees to; what looks otherwise is text.
#[derive(Debug, Default)]
pub(super) struct Calls {
    state: State,
    /// What has come and has not been understood yet.
    held: String,
    begun: usize,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing has been said yet, or a call has ended.
    #[default]
    Between,
    Text,
    /// In the arguments.
    Arguments(Nesting),
    /// After them.
    Closing,
}

impl Calls {
    /// Whether a tool has been called.
    pub(super) fn any(&self) -> bool {
        self.begun > 0
    }

    /// Takes more of the answer.
    pub(super) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while let Some(part) = self.step() {
            parts.extend(part);
        }
        parts
    }

    /// The answer has ended.
    pub(super) fn finish(&mut self) -> Vec<Part> {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Between | State::Text if !rest.trim().is_empty() => vec![Part::Text(rest)],
            _ => Vec::new(),
        }
    }

    /// Understands what is held, if it can, which may give a part.
    fn step(&mut self) -> Option<Option<Part>> {
        if self.held.is_empty() {
            return None;
        }
        match &mut self.state {
            State::Text => Some(Some(Part::Text(std::mem::take(&mut self.held)))),
            State::Between => self.begin(),
            State::Arguments(nesting) => {
                let length = nesting.take(&self.held);
                if nesting.closed {
                    self.state = State::Closing;
                }
                let rest = self.held.split_off(length);
                let text = std::mem::replace(&mut self.held, rest);
                Some(Some(Part::Arguments { index: self.begun - 1, text }))
            }
            State::Closing => {
                let rest = self.held.strip_prefix('}')?.strip_prefix(CALL_ENDS)?;
                self.held = rest.to_owned();
                self.state = State::Between;
                Some(None)
            }
        }
    }

    /// A call or text begins.
    fn begin(&mut self) -> Option<Option<Part>> {
        let start = self.held.trim_start();
        let after = match start.strip_prefix(CALL_BEGINS) {
            Some(after) => after,
            // It may still become one.
            None if CALL_BEGINS.starts_with(start) => return None,
            None => {
                self.state = State::Text;
                return Some(None);
            }
        };
        let (head, rest) = after.split_once(",\"arguments\":")?;
        let name = serde_json::from_str::<Value>(&format!("{head}}}")).ok();
        let name = name.as_ref().and_then(|head| head["name"].as_str().map(ToOwned::to_owned));
        let Some(name) = name else {
            self.state = State::Text;
            return Some(None);
        };
        self.held = rest.to_owned();
        self.state = State::Arguments(Nesting::default());
        self.begun += 1;
        Some(Some(Part::Call { index: self.begun - 1, id: new_id("call"), name }))
    }
}

/// Where a JSON object ends.
#[derive(Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
    closed: bool,
}

impl Nesting {
    /// Bytes of `text` that belong to it.
    fn take(&mut self, text: &str) -> usize {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.closed = true;
                        return at + 1;
                    }
                }
                _ => {}
            }
        }
        text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, and names with arguments.
    fn read(pieces: impl Iterator<Item = String>) -> (String, Vec<(String, String)>) {
        let mut calls = Calls::default();
        let mut parts: Vec<Part> = pieces.flat_map(|piece| calls.push(&piece)).collect();
        parts.extend(calls.finish());
        let (mut text, mut made) = (String::new(), Vec::<(String, String)>::new());
        for part in parts {
            match part {
                Part::Text(more) => text.push_str(&more),
                Part::Call { name, index, .. } => {
                    assert_eq!(index, made.len());
                    made.push((name, String::new()));
                }
                Part::Arguments { index, text } => made[index].1.push_str(&text),
            }
        }
        assert_eq!(calls.any(), !made.is_empty());
        (text, made)
    }

    #[test]
    fn calls_are_the_same_however_they_are_cut() {
        let arguments = r#"{"a":"}\"]{","b":[{"c":"\\"}]}"#;
        let answer = format!(
            "<tool_call>{{\"name\":\"f\",\"arguments\":{arguments}}}</tool_call>\n\
             <tool_call>{{\"name\":\"g\",\"arguments\":{{}}}}</tool_call>"
        );
        let expected =
            vec![("f".to_owned(), arguments.to_owned()), ("g".to_owned(), "{}".to_owned())];
        for size in 1..answer.len() {
            let pieces = answer.as_bytes().chunks(size);
            let pieces = pieces.map(|piece| String::from_utf8(piece.to_vec()).unwrap());
            assert_eq!(read(pieces), (String::new(), expected.clone()), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_call_is_text() {
        for answer in ["Hello <tool_call>", "<tool_cal", "", "a", "<tool_call>{}"] {
            let (text, calls) = read(answer.chars().map(String::from));
            assert_eq!((&*text, calls), (answer, vec![]));
        }
        let odd = "<tool_call>{\"nam\":\"f\",\"arguments\":{}}</tool_call>";
        assert_eq!(read([odd.to_owned()].into_iter()), (odd.to_owned(), vec![]));
    }
}
