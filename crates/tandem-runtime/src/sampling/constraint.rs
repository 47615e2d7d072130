//! What an answer may look like.

use std::fmt::Debug;

use super::AnswerForm;

/// Says token by token what may come next in one text: a grammar, a schema. It is told of every token that is chosen.
pub trait Constraint: Debug + Send {
    /// The ids that may come next, one bit each: id `i` is bit `i % 32` of word `i / 32`; ids beyond the last word may not
    /// come. The ids that end the text are among them where it may end here.
    ///
    /// # Errors
    /// Where that cannot be said: a grammar that is too large, or an error in it.
    fn mask(&mut self) -> Result<&[u32], String>;

    /// A token was chosen.
    ///
    /// # Errors
    /// Where it was not allowed.
    fn accept(&mut self, id: u32) -> Result<(), String>;

    /// The same constraint, as far along, for another text.
    fn boxed(&self) -> Box<dyn Constraint>;

    /// What it was made of, for another process that is to make the same; `None` where that cannot be told.
    fn form(&self) -> Option<&AnswerForm> {
        None
    }
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.as_ref().boxed()
    }
}

/// Whether a mask has an id.
pub(crate) fn allows(mask: &[u32], id: u32) -> bool {
    mask.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
}
