//! How many members of the team compute.

/// Tokens that go through the model together without being a prompt: a decoded one, or a few guessed ones that are
/// verified. Up to so many the weights are read once from memory whatever the tokens' number, and that takes the time.
const DECODE_TOKENS: usize = 8;

/// Members of the team that compute, the caller included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// For tokens one by one: bound by memory.
    pub decode: usize,
    /// For prompts: bound by arithmetic.
    pub prefill: usize,
}

impl Threads {
    /// As many for everything.
    pub const fn same(threads: usize) -> Self {
        Self { decode: threads, prefill: threads }
    }

    /// Members that a team must have for both.
    pub fn team_size(self) -> usize {
        self.decode.max(self.prefill)
    }

    /// Threads for a batch.
    pub const fn for_tokens(self, tokens: usize) -> usize {
        if tokens <= DECODE_TOKENS { self.decode } else { self.prefill }
    }
}
