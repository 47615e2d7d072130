//! One text: what the model has read so far, and how it goes on.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tandem_memory::{KvCache, KvType};
use tandem_model::detokenize::{Detokenizer, Special};
use tandem_model::tokenizer::Tokenizer;

use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, LogitsFor};
use crate::sampling::{Sampler, SamplingParams};
use crate::stop::{Filtered, StopFilter};

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tokens to generate at most; `None` is until the text ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Ids that end the text.
    pub stop_ids: Vec<u32>,
    /// Strings that end the text; they are not part of it.
    pub stop_strings: Vec<String>,
    /// Whether the answer goes on where the prompt's text ends, so that a space between the two belongs to it. The
    /// answer to a conversation begins anew.
    pub continues_prompt: bool,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string came.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    ContextFull,
    /// The listener said so.
    Cancelled,
}

impl FinishReason {
    /// The name in machine-readable output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContextFull => "context_full",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A generated text and how long it took.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Generated ids, without the stop id.
    pub ids: Vec<u32>,
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache from before.
    pub cached_tokens: usize,
    /// Tokens of the prompt that were computed; fewer than the rest where the text was cancelled early.
    pub computed_tokens: usize,
    /// Time for those.
    pub prompt_time: Duration,
    /// Tokens that went through the model one by one.
    pub decoded_tokens: usize,
    /// Time for those.
    pub decode_time: Duration,
}

/// The state of one text.
pub struct Session {
    kv: KvCache,
    /// The tokens whose keys and values are in the cache.
    ids: Vec<u32>,
}

impl Session {
    /// An empty text with room for `context` tokens.
    ///
    /// # Errors
    /// Where memory for the cache cannot be had.
    pub fn new(executor: &Executor, context: usize, kv_type: KvType) -> Result<Self> {
        let c = executor.model().config();
        let kv = KvCache::new(c.n_layers, c.n_kv_heads, c.head_dim, context, kv_type)?;
        Ok(Self { kv, ids: Vec::new() })
    }

    /// Tokens that the context holds.
    pub fn context(&self) -> usize {
        self.kv.capacity()
    }

    /// Bytes of keys and values of one token, over all layers.
    pub fn kv_bytes_per_token(&self) -> usize {
        self.kv.bytes_per_token()
    }

    /// The KV cache, for those who drive the executor themselves.
    pub fn kv_mut(&mut self) -> &mut KvCache {
        self.ids.clear();
        &mut self.kv
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
        let mut sampler = Sampler::new(request.sampling.clone())?;
        let started = Instant::now();
        let cached_tokens = self.keep_common(prompt)?;
        let mut output = Output::new(tokenizer, prompt, request, listener);
        let max_tokens = request.max_tokens.unwrap_or(usize::MAX);
        let mut logits = self.prefill(executor, prompt, &mut output)?;
        let computed_tokens = self.ids.len() - cached_tokens;
        let prompt_time = started.elapsed();
        let decode_started = Instant::now();
        let mut finish =
            if output.cancelled { FinishReason::Cancelled } else { FinishReason::Length };
        let mut text_ids = Vec::new();
        let mut decoded_tokens = 0;
        while !output.cancelled && text_ids.len() < max_tokens {
            let allowed = |id| tokenizer.has_token(id);
            let id = sampler.sample(&logits, &self.ids, allowed)?;
            if request.stop_ids.contains(&id) {
                finish = FinishReason::Stop;
                break;
            }
            text_ids.push(id);
            if output.token(id) {
                finish =
                    if output.cancelled { FinishReason::Cancelled } else { FinishReason::Stop };
                break;
            }
            if text_ids.len() == max_tokens {
                break;
            }
            if self.ids.len() == self.context() {
                finish = FinishReason::ContextFull;
                break;
            }
            logits.clear();
            logits.extend_from_slice(executor.forward(
                &[id],
                &mut self.kv,
                LogitsFor::Last,
                None,
            )?);
            self.ids.push(id);
            decoded_tokens += 1;
        }
        output.finish();
        Ok(Generated {
            ids: text_ids,
            text: output.text,
            finish,
            prompt_tokens: prompt.len(),
            cached_tokens,
            computed_tokens,
            prompt_time,
            decoded_tokens,
            decode_time: decode_started.elapsed(),
        })
    }

    /// Forgets what the prompt does not share, but for its last token at least, whose logits are needed.
    fn keep_common(&mut self, prompt: &[u32]) -> Result<usize> {
        if prompt.is_empty() {
            return Err(RuntimeError::EmptyPrompt);
        }
        if prompt.len() > self.context() {
            let (tokens, context) = (prompt.len(), self.context());
            return Err(RuntimeError::PromptTooLong { tokens, context });
        }
        let common = self.ids.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let common = common.min(prompt.len() - 1);
        self.ids.truncate(common);
        self.kv.truncate(common);
        Ok(common)
    }

    /// Runs the rest of the prompt in batches; answers the logits of its last token.
    fn prefill(
        &mut self,
        executor: &mut Executor,
        prompt: &[u32],
        output: &mut Output<'_>,
    ) -> Result<Vec<f32>> {
        let batch = executor.batch();
        let mut logits = Vec::new();
        while self.ids.len() < prompt.len() && !output.poll() {
            let rest = &prompt[self.ids.len()..];
            let ids = &rest[..rest.len().min(batch)];
            let wanted = if ids.len() == rest.len() { LogitsFor::Last } else { LogitsFor::None };
            logits.extend_from_slice(executor.forward(ids, &mut self.kv, wanted, None)?);
            self.ids.extend_from_slice(ids);
        }
        Ok(logits)
    }
}

/// From ids to the listener: detokenizer, then stop strings.
struct Output<'a> {
    detokenizer: Detokenizer<'a>,
    filter: StopFilter,
    listener: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    text: String,
    cancelled: bool,
    stopped: bool,
}

impl<'a> Output<'a> {
    fn new(
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
        request: &Request,
        listener: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Self {
        let mut detokenizer = Detokenizer::new(tokenizer, Special::Skip);
        if request.continues_prompt {
            for &id in prompt {
                detokenizer.push(id);
            }
        }
        Self {
            detokenizer,
            filter: StopFilter::new(&request.stop_strings),
            listener,
            text: String::new(),
            cancelled: false,
            stopped: false,
        }
    }

    /// Asks the listener whether to go on, with no text; answers whether the text ends here.
    fn poll(&mut self) -> bool {
        self.cancelled |= (self.listener)("").is_break();
        self.cancelled
    }

    /// Takes a token; answers whether the text ends here.
    fn token(&mut self, id: u32) -> bool {
        let text = self.detokenizer.push(id).unwrap_or_default();
        self.show(&text);
        // A token that completes no character shows nothing, but a cancelled text must end all the same.
        self.stopped || self.poll()
    }

    fn show(&mut self, text: &str) {
        let shown = match self.filter.push(text) {
            Filtered::Continue(shown) => shown,
            Filtered::Stop(shown) => {
                self.stopped = true;
                shown
            }
        };
        self.emit(&shown);
    }

    fn emit(&mut self, text: &str) {
        if !text.is_empty() {
            self.text.push_str(text);
            self.cancelled |= (self.listener)(text).is_break();
        }
    }

    /// Shows what was held back.
    fn finish(&mut self) {
        if self.stopped {
            return;
        }
        let rest = self.detokenizer.finish().unwrap_or_default();
        self.show(&rest);
        if !self.stopped {
            let held = self.filter.finish();
            self.emit(&held);
        }
    }
}
