//! One text after the other, by an executor that has nothing else to do.

use std::ops::ControlFlow;

use tandem_memory::{KvCache, KvType};
use tandem_model::tokenizer::Tokenizer;

use super::{Context, Generated, Generation, Request, Turn, advance};
use crate::error::Result;
use crate::executor::Executor;

/// The state of one text.
pub struct Session {
    context: Context,
}

impl Session {
    /// An empty text with room for `context` tokens.
    ///
    /// # Errors
    /// Where memory for the cache cannot be had.
    pub fn new(executor: &Executor, context: usize, kv_type: KvType) -> Result<Self> {
        Ok(Self { context: Context::new(executor.kv_cache(context, kv_type)?) })
    }

    /// Tokens that the context holds.
    pub fn context(&self) -> usize {
        self.context.capacity()
    }

    /// Bytes of keys and values of one token, over all layers.
    pub fn kv_bytes_per_token(&self) -> usize {
        self.context.kv.bytes_per_token()
    }

    /// The KV cache, for those who drive the executor themselves.
    pub fn kv_mut(&mut self) -> &mut KvCache {
        self.context.ids.clear();
        &mut self.context.kv
    }

    /// Continues `prompt`. What the prompt shares with the text so far is not computed again. `listener` gets the
    /// text as it comes, in whole characters, and says whether to go on.
    ///
    /// # Errors
    /// Where the prompt is empty or too long, a parameter is out of range, or logits are not finite.
    pub fn generate(
        &mut self,
        executor: &mut Executor,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        request: &Request,
        listener: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let context = &mut self.context;
        let mut text =
            Generation::new(context, tokenizer, prompt.to_vec(), request, Box::new(listener))?;
        while let Some(step) = text.next_step(context, executor.pass_limit()) {
            let turn = Turn { text: &mut text, context: &mut *context, step };
            advance(executor, tokenizer, vec![turn])?.into_iter().collect::<Result<()>>()?;
        }
        Ok(text.finish())
    }
}
