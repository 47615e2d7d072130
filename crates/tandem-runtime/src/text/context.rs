//! What of a text has gone through the model.

use tandem_memory::KvCache;

/// Tokens whose keys and values are in a cache.
pub(crate) struct Context<C = KvCache> {
    pub(crate) kv: C,
    pub(crate) ids: Vec<u32>,
}

/// What holds keys and values of a text's tokens.
pub(crate) trait Cache {
    /// Tokens that there is room for.
    fn capacity(&self) -> usize;
    /// Forgets what comes after so many tokens.
    fn truncate(&mut self, len: usize);
}

impl Cache for KvCache {
    fn capacity(&self) -> usize {
        self.capacity()
    }

    fn truncate(&mut self, len: usize) {
        self.truncate(len);
    }
}

impl<C: Cache> Context<C> {
    /// Of an empty cache.
    pub(crate) fn new(kv: C) -> Self {
        Self { kv, ids: Vec::new() }
    }

    /// Tokens that there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.kv.capacity()
    }

    /// Tokens that a prompt has in common with what is there, without its last one, whose logits are needed.
    pub(crate) fn common(&self, prompt: &[u32]) -> usize {
        common(&self.ids, prompt).min(prompt.len().saturating_sub(1))
    }

    /// Forgets what comes after so many tokens.
    pub(super) fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.kv.truncate(len);
    }
}

/// How many ids two texts begin with alike.
pub(crate) fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}
