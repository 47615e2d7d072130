//! Text from files, made fit for one-line messages.
//!
//! Names, values and paths come from strangers and end up in terminals and logs. None of them may break the line, move
//! the cursor, reverse the direction of what follows, or fill the screen.

use std::fmt::{self, Display};
use std::path::Path;

/// Longest name or value that a message repeats, in characters.
const SHOWN_CHARS: usize = 160;
/// Longest part of a message, in characters: room for a quoted name and what is said about it.
const PART_CHARS: usize = 400;
/// Longest path that Linux opens.
const PATH_CHARS: usize = 4096;

/// Any text as a part of a one-line message: control characters escaped, a long tail cut off.
pub fn one_line(text: impl Display) -> String {
    Shown { text: &text.to_string(), most: PART_CHARS }.to_string()
}

/// A path as it begins a one-line message: whole, control characters escaped.
pub fn one_line_path(path: &Path) -> String {
    Shown { text: &path.to_string_lossy(), most: PATH_CHARS }.to_string()
}

/// The beginning of a text, with what would disturb a line escaped.
struct Shown<'a> {
    text: &'a str,
    most: usize,
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.text.chars();
        for c in chars.by_ref().take(self.most) {
            if disturbs(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        f.write_str(if chars.next().is_some() { "..." } else { "" })
    }
}

/// Control characters, Unicode's line and paragraph separators, and its marks that change the direction of text.
fn disturbs(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Shows a name from a file between backticks.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", Shown { text: self.0, most: SHOWN_CHARS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_disturb_a_line_is_escaped() {
        assert_eq!(one_line("a\nb\u{1b}[0m\u{2028}\u{202e}é"), r"a\nb\u{1b}[0m\u{2028}\u{202e}é");
        assert_eq!(one_line_path(Path::new("a\r/b c")), r"a\r/b c");
        assert_eq!(one_line("ä".repeat(PART_CHARS)), "ä".repeat(PART_CHARS));
        assert_eq!(one_line("ä".repeat(PART_CHARS + 1)), format!("{}...", "ä".repeat(PART_CHARS)));
    }
}
