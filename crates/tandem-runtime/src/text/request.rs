//! What is asked for, and what comes of it.

use std::time::Duration;

use crate::sampling::{Constraint, SamplingParams, TokenLogprobs};

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
    /// Log probabilities of the chosen tokens, and of so many of the most likely ones with each; `None` is none at all.
    pub logprobs: Option<usize>,
    /// What the answer may look like.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl Request {
    /// Until the text ends, with no stop strings, no guesses and nothing else asked for.
    pub fn new(sampling: SamplingParams, stop_ids: Vec<u32>) -> Self {
        Self {
            max_tokens: None,
            sampling,
            stop_ids,
            stop_strings: Vec::new(),
            lookup: 0,
            continues_prompt: false,
            logprobs: None,
            constraint: None,
        }
    }
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

    /// The one of that [name](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Stop, Self::Length, Self::ContextFull, Self::Cancelled];
        all.into_iter().find(|reason| reason.name() == name)
    }
}

/// A generated text and how long it took.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Generated ids, without the stop id.
    pub ids: Vec<u32>,
    /// What the model made of each of them, where that was asked for.
    pub logprobs: Vec<TokenLogprobs>,
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

impl Generated {
    /// Nothing yet, after a prompt of so many tokens that nobody has read.
    pub(crate) fn unread(prompt_tokens: usize) -> Self {
        Self {
            ids: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
            finish: FinishReason::Cancelled,
            prompt_tokens,
            cached_tokens: 0,
            computed_tokens: 0,
            prompt_time: Duration::ZERO,
            decoded_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            decode_time: Duration::ZERO,
        }
    }
}
