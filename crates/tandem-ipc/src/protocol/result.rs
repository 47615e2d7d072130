//! What came of a text.

use serde::{Deserialize, Serialize};
use tandem_runtime::Generated;

use super::TokenLogprob;

/// What came of it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct GenerateResult {
    /// The whole text.
    pub text: String,
    /// Its ids, without the stop id.
    pub ids: Vec<u32>,
    /// What the model made of each of them, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// `stop`, `length`, `context_full` or `cancelled`.
    pub finish_reason: String,
    /// Start of the random numbers.
    pub seed: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those whose keys and values were there from before.
    pub cached_tokens: usize,
    /// Those that were computed.
    pub computed_tokens: usize,
    /// Tokens chosen after those of the prompt, the first left out.
    pub decoded_tokens: usize,
    /// Time from the turn's begin to the first token.
    pub prompt_ms: f64,
    /// Time for the others.
    pub decode_ms: f64,
}

impl GenerateResult {
    /// Of a text that was written with this seed.
    pub fn new(generated: Generated, seed: u64) -> Self {
        Self {
            finish_reason: generated.finish.name().to_owned(),
            seed,
            prompt_tokens: generated.prompt_tokens,
            cached_tokens: generated.cached_tokens,
            computed_tokens: generated.computed_tokens,
            decoded_tokens: generated.decoded_tokens,
            prompt_ms: generated.prompt_time.as_secs_f64() * 1e3,
            decode_ms: generated.decode_time.as_secs_f64() * 1e3,
            ids: generated.ids,
            logprobs: TokenLogprob::all(generated.logprobs),
            text: generated.text,
        }
    }
}
