//! Log probabilities, as each of the two APIs has them.

use serde::Serialize;
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::TokenLogprobs;
use utoipa::ToSchema;

/// JSON has no infinity; nothing is less likely than this.
const LEAST: f32 = -9999.0;

/// Of an answer in a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    /// One for each token.
    pub(crate) content: Vec<ChatLogprob>,
    /// None: this model does not refuse so.
    pub(crate) refusal: Option<String>,
}

/// Of a token that was chosen.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprob {
    #[serde(flatten)]
    chosen: TopLogprob,
    /// The most likely ones.
    top_logprobs: Vec<TopLogprob>,
}

/// Of a token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    /// Its text; what is no whole character is U+FFFD.
    token: String,
    /// The natural logarithm of its probability.
    logprob: f32,
    /// The bytes of its text.
    bytes: Vec<u8>,
}

impl TopLogprob {
    fn new(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Self {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        let token = String::from_utf8_lossy(&bytes).into_owned();
        Self { token, logprob: logprob.max(LEAST), bytes }
    }
}

impl ChatLogprobs {
    pub(crate) fn new(tokenizer: &Tokenizer, tokens: &[TokenLogprobs]) -> Self {
        let top = |&(id, logprob): &(u32, f32)| TopLogprob::new(tokenizer, id, logprob);
        let content = tokens.iter().map(|token| ChatLogprob {
            chosen: TopLogprob::new(tokenizer, token.id, token.logprob),
            top_logprobs: token.top.iter().map(top).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

/// Of a completion: columns with one entry for each token.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    /// The tokens' texts.
    tokens: Vec<String>,
    /// The natural logarithms of their probabilities.
    token_logprobs: Vec<f32>,
    /// The most likely ones and the chosen one, by their texts.
    top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Where each begins, in characters from the answer's beginning: what no whole character is counts as one.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Of some tokens, the first of which begins at `offset`; answers also where the next one does.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        tokens: &[TokenLogprobs],
        mut offset: usize,
    ) -> (Self, usize) {
        let mut columns = Self::default();
        for token in tokens {
            let chosen = TopLogprob::new(tokenizer, token.id, token.logprob);
            let mut top = serde_json::Map::new();
            for &(id, logprob) in &token.top {
                let TopLogprob { token, logprob, .. } = TopLogprob::new(tokenizer, id, logprob);
                top.entry(token).or_insert(logprob.into());
            }
            top.entry(chosen.token.clone()).or_insert(chosen.logprob.into());
            columns.text_offset.push(offset);
            offset += chosen.token.chars().count();
            columns.tokens.push(chosen.token);
            columns.token_logprobs.push(chosen.logprob);
            columns.top_logprobs.push(top);
        }
        (columns, offset)
    }
}
