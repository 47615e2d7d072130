//! One text, by a model that another library computes.

use std::ops::ControlFlow;

use tandem_model::tokenizer::Tokenizer;

use super::{Cache, Context, Generated, Generation, Request};
use crate::error::{Result, RuntimeError};
use crate::executor::{LogitsFor, check_ids};

/// A model, with one text's keys and values, that is computed by something else than an [`Executor`].
///
/// [`Executor`]: crate::Executor
pub trait ForeignModel {
    /// Tokens that keys and values may be kept of.
    fn capacity(&self) -> usize;

    /// Tokens that [`Self::forward`] takes at most.
    fn batch(&self) -> usize;

    /// Logits of a token.
    fn vocab_size(&self) -> usize;

    /// Forgets keys and values of what comes after so many tokens.
    fn truncate(&mut self, len: usize);

    /// Runs `ids` after the tokens whose keys and values are kept, and keeps theirs. Answers logits, `tokens x vocab`, of
    /// the tokens that are wanted.
    ///
    /// # Errors
    /// What the library says.
    fn forward(&mut self, ids: &[u32], wanted: LogitsFor) -> Result<Vec<f32>, ForeignError>;
}

/// What another library says went wrong.
pub type ForeignError = Box<dyn std::error::Error + Send + Sync>;

impl<M: ForeignModel> Cache for M {
    fn capacity(&self) -> usize {
        ForeignModel::capacity(self)
    }

    fn truncate(&mut self, len: usize) {
        ForeignModel::truncate(self, len);
    }
}

/// The state of one text.
pub struct ForeignSession<M> {
    context: Context<M>,
}

impl<M: ForeignModel> ForeignSession<M> {
    /// An empty text.
    pub fn new(mut model: M) -> Self {
        ForeignModel::truncate(&mut model, 0);
        Self { context: Context::new(model) }
    }

    /// The model, for those who drive it themselves. The text is empty afterwards.
    pub fn model_mut(&mut self) -> &mut M {
        self.context.ids.clear();
        &mut self.context.kv
    }

    /// As [`Session::generate`](super::Session::generate).
    ///
    /// # Errors
    /// As there, and what the library says.
    pub fn generate(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        request: &Request,
        listener: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let context = &mut self.context;
        check_ids(prompt, context.kv.vocab_size())?;
        let mut text =
            Generation::new(context, tokenizer, prompt.to_vec(), request, Box::new(listener))?;
        while let Some(step) = text.next_step(context, context.kv.batch()) {
            let (ids, wanted) = step.parts();
            let logits = context.kv.forward(ids, wanted).map_err(RuntimeError::Foreign)?;
            let rows: Vec<_> = logits.chunks_exact(context.kv.vocab_size()).collect();
            text.advance_by(context, &step, &rows)?;
        }
        Ok(text.finish())
    }
}
