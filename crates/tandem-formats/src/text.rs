//! Text from files, made fit for one-line messages.

use std::fmt;

/// Longest part of a name that a message repeats.
const SHOWN_CHARS: usize = 100;

/// Shows a name from a file between backticks, with control characters escaped and a long tail cut off.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        f.write_str("`")?;
        for c in chars.by_ref().take(SHOWN_CHARS) {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        f.write_str(if chars.next().is_some() { "...`" } else { "`" })
    }
}
