//! Tokens that a request has used.

use serde::Serialize;
use tandem_runtime::Generated;
use utoipa::ToSchema;

/// Tokens that a request has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Of its prompts; each counts once, however many answers there are to it.
    pub(crate) prompt_tokens: usize,
    /// Of all answers.
    pub(crate) completion_tokens: usize,
    /// Both.
    pub(crate) total_tokens: usize,
    /// More on the prompts.
    pub(crate) prompt_tokens_details: PromptTokens,
}

/// More on the prompts' tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct PromptTokens {
    /// Those that were not computed again.
    pub(crate) cached_tokens: usize,
}

impl Usage {
    /// The text of that number has ended; every `choices` of them have one prompt.
    pub(crate) fn add(&mut self, number: usize, choices: usize, generated: &Generated) {
        if number.is_multiple_of(choices) {
            self.prompt_tokens += generated.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += generated.cached_tokens;
        }
        self.completion_tokens += generated.ids.len();
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}
