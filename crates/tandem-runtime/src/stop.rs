//! Stop strings, found across token borders.
//!
//! Text that could be the beginning of a stop string is held back until the next token decides, so that a stream
//! never shows any part of one.

/// Watches a stream of text for stop strings.
#[derive(Debug, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What may be shown after a piece of text has come in.
#[derive(Debug, PartialEq, Eq)]
pub enum Filtered {
    /// Show this (perhaps nothing yet) and go on.
    Continue(String),
    /// Show this and end: a stop string follows it.
    Stop(String),
}

impl StopFilter {
    /// A filter for these strings; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Filtered {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Filtered::Stop(std::mem::take(&mut self.held));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let shown = self.held.drain(..self.held.len() - keep).collect();
        Filtered::Continue(shown)
    }

    /// What is still held back when the text ends without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(i, _)| i)
        .skip(1)
        .filter(|&n| text.ends_with(&stop[..n]))
        .last()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut filter = StopFilter::new(&stops);
        let mut shown = Vec::new();
        for piece in pieces {
            match filter.push(piece) {
                Filtered::Continue(s) => shown.push(s),
                Filtered::Stop(s) => {
                    shown.push(s);
                    return (shown, true);
                }
            }
        }
        shown.push(filter.finish());
        (shown, false)
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        let (shown, stopped) = stream(&["END"], &["one E", "N", "D two"]);
        assert_eq!(shown, ["one ", "", ""]);
        assert!(stopped);
    }

    #[test]
    fn a_false_alarm_is_shown_in_full() {
        let (shown, stopped) = stream(&["END"], &["one E", "N", "ough", " EN"]);
        assert_eq!(shown.concat(), "one ENough EN");
        assert!(!stopped);
    }

    #[test]
    fn the_first_of_several_wins_and_borders_are_characters() {
        let (shown, stopped) = stream(&["ü!", "b", ""], &["aü", "ü!b"]);
        assert_eq!(shown.concat(), "aü");
        assert!(stopped);
        let (shown, _) = stream(&["éé"], &["xé", "y"]);
        assert_eq!(shown.concat(), "xéy");
    }
}
