//! How likely the model found tokens, as answers tell it.

use serde::{Deserialize, Serialize};
use tandem_runtime::TokenLogprobs;

/// A token's log probability.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct IdLogprob {
    /// The token.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// A chosen token's log probability, and the most likely ones'.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct TokenLogprob {
    /// The token that was chosen.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The most likely ones, the likeliest first: as many as were asked for.
    pub top: Vec<IdLogprob>,
}

impl TokenLogprob {
    /// Of all tokens of a piece of text.
    pub(crate) fn all(logprobs: Vec<TokenLogprobs>) -> Vec<Self> {
        logprobs.into_iter().map(Self::from).collect()
    }
}

impl From<TokenLogprobs> for TokenLogprob {
    fn from(TokenLogprobs { id, logprob, top }: TokenLogprobs) -> Self {
        let top = top.into_iter().map(|(id, logprob)| IdLogprob { id, logprob }).collect();
        Self { id, logprob, top }
    }
}

impl From<TokenLogprob> for TokenLogprobs {
    fn from(TokenLogprob { id, logprob, top }: TokenLogprob) -> Self {
        let top = top.into_iter().map(|IdLogprob { id, logprob }| (id, logprob)).collect();
        Self { id, logprob, top }
    }
}
