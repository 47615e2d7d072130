//! One text: what the model has read so far, and how it goes on.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tandem_memory::{KvCache, KvType};
use tandem_model::detokenize::{Detokenizer, Special};
use tandem_model::tokenizer::Tokenizer;

use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, LogitsFor};
use crate::lookup::Lookup;
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
    /// Tokens to guess ahead, at most, from what followed the same tokens earlier in the text; 0 guesses none. The text
    /// is the same either way, but for rounding.
    pub lookup: usize,
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
    /// Tokens chosen after those of the prompt, the first left out.
    pub decoded_tokens: usize,
    /// Tokens that were guessed.
    pub drafted_tokens: usize,
    /// Guesses that were right.
    pub accepted_tokens: usize,
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
        Ok(Self { kv: executor.kv_cache(context, kv_type)?, ids: Vec::new() })
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
        let allowed = |id| tokenizer.has_token(id);
        let sampler = Sampler::new(request.sampling.clone())?;
        let mut chooser = Chooser { sampler, allowed: &allowed };
        let started = Instant::now();
        let cached_tokens = self.keep_common(prompt)?;
        let mut output = Output::new(tokenizer, prompt, request, listener);
        let mut writing =
            Writing::new(request, self.prefill(executor, prompt, &mut chooser, &mut output)?);
        let computed_tokens = self.ids.len() - cached_tokens;
        let prompt_time = started.elapsed();
        let decode_started = Instant::now();
        while writing.take_chosen(&mut output, self.ids.len() == self.context()) {
            // The newest token is not in the cache yet; drafts come after it.
            let mut ids = vec![writing.newest()];
            let room = (self.context() - self.ids.len() - 1).min(executor.batch() - 1);
            ids.extend(writing.draft(&self.ids, room));
            let drafted = ids.len() - 1;
            writing.chosen = self.advance(executor, &ids, drafted, &mut chooser)?;
            writing.verified(drafted);
        }
        output.finish();
        Ok(Generated {
            ids: writing.ids,
            text: output.text,
            finish: if output.cancelled { FinishReason::Cancelled } else { writing.finish },
            prompt_tokens: prompt.len(),
            cached_tokens,
            computed_tokens,
            prompt_time,
            decoded_tokens: writing.decoded_tokens,
            drafted_tokens: writing.drafted_tokens,
            accepted_tokens: writing.accepted_tokens,
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

    /// Runs the rest of the prompt in batches; answers the token chosen after it, or none where the listener ended it.
    fn prefill(
        &mut self,
        executor: &mut Executor,
        prompt: &[u32],
        chooser: &mut Chooser<'_>,
        output: &mut Output<'_>,
    ) -> Result<Vec<u32>> {
        let batch = executor.batch();
        while !output.poll() {
            let rest = &prompt[self.ids.len()..];
            if rest.len() <= batch {
                return self.advance(executor, rest, 0, chooser);
            }
            executor.forward(&rest[..batch], &mut self.kv, LogitsFor::None, None)?;
            self.ids.extend_from_slice(&rest[..batch]);
        }
        Ok(Vec::new())
    }

    /// Runs `ids`, the last `drafted` of which are guesses, and chooses the token after the last that is none; and as
    /// long as that is the one guessed, the next. What was guessed wrong is forgotten.
    ///
    /// The tokens chosen are those that would be chosen one by one: every choice looks at the logits after the tokens
    /// that were chosen before it, and takes one draw of random numbers.
    fn advance(
        &mut self,
        executor: &mut Executor,
        ids: &[u32],
        drafted: usize,
        chooser: &mut Chooser<'_>,
    ) -> Result<Vec<u32>> {
        let wanted = if drafted == 0 { LogitsFor::Last } else { LogitsFor::All };
        let guesses = &ids[ids.len() - drafted..];
        let mut chosen: Vec<u32> = Vec::with_capacity(drafted + 1);
        self.ids.extend_from_slice(&ids[..ids.len() - drafted]);
        let agrees = |chosen: &[u32]| chosen == &guesses[..chosen.len().min(guesses.len())];
        if let Some(count) = chooser.sampler.choices() {
            let rows = executor.forward_top(ids, &mut self.kv, wanted, count, chooser.allowed)?;
            let mut rows = rows.iter();
            while agrees(&chosen)
                && let Some(most_likely) = rows.next()
            {
                chosen.push(chooser.sampler.sample_of(most_likely)?);
            }
        } else {
            let vocab_size = executor.model().config().vocab_size;
            let logits = executor.forward(ids, &mut self.kv, wanted, None)?;
            let mut rows = logits.chunks_exact(vocab_size);
            while agrees(&chosen)
                && let Some(logits) = rows.next()
            {
                let id = chooser.sampler.sample(logits, &self.ids, chooser.allowed)?;
                chosen.push(id);
                self.ids.push(id);
            }
            self.ids.truncate(self.ids.len() - chosen.len());
        }
        let accepted = chosen.len() - 1;
        self.ids.extend_from_slice(&chosen[..accepted]);
        self.kv.truncate(self.ids.len());
        Ok(chosen)
    }
}

/// How tokens are chosen, and which may be.
struct Chooser<'a> {
    sampler: Sampler,
    allowed: &'a (dyn Fn(u32) -> bool + Sync),
}

/// The answer so far.
struct Writing<'a> {
    request: &'a Request,
    /// Its ids, without the stop id.
    ids: Vec<u32>,
    /// Tokens that were chosen and not looked at yet.
    chosen: Vec<u32>,
    finish: FinishReason,
    lookup: Lookup,
    decoded_tokens: usize,
    drafted_tokens: usize,
    accepted_tokens: usize,
}

impl<'a> Writing<'a> {
    fn new(request: &'a Request, chosen: Vec<u32>) -> Self {
        Self {
            request,
            ids: Vec::new(),
            chosen,
            finish: FinishReason::Length,
            lookup: Lookup::new(request.lookup),
            decoded_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
        }
    }

    /// Takes what was chosen into the answer, up to its end; answers whether it goes on.
    fn take_chosen(&mut self, output: &mut Output<'_>, context_full: bool) -> bool {
        let max_tokens = self.request.max_tokens.unwrap_or(usize::MAX);
        if output.cancelled || self.ids.len() >= max_tokens {
            return false;
        }
        for id in std::mem::take(&mut self.chosen) {
            if self.request.stop_ids.contains(&id) {
                self.finish = FinishReason::Stop;
                return false;
            }
            self.ids.push(id);
            if output.token(id) {
                self.finish = FinishReason::Stop;
                return false;
            }
            if self.ids.len() == max_tokens {
                return false;
            }
        }
        if context_full {
            self.finish = FinishReason::ContextFull;
        }
        !context_full
    }

    fn newest(&self) -> u32 {
        self.ids.last().copied().unwrap_or_default()
    }

    /// What may come after the newest token: `before` are the tokens in the cache.
    fn draft(&mut self, before: &[u32], room: usize) -> Vec<u32> {
        // The token after the drafts counts as well.
        let left = self.request.max_tokens.map_or(usize::MAX, |max| max - self.ids.len() - 1);
        self.lookup.draft(before, self.newest(), room.min(left))
    }

    /// Tokens were chosen after `drafted` guesses.
    fn verified(&mut self, drafted: usize) {
        let accepted = self.chosen.len() - 1;
        self.lookup.learn(drafted, accepted);
        self.decoded_tokens += self.chosen.len();
        self.drafted_tokens += drafted;
        self.accepted_tokens += accepted;
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
