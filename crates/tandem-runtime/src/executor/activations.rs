//! What goes from operation to operation: the activations of one batch, in memory that every device can use.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tandem_memory::{AlignedBuffer, AllocError, Allocator, Element};
use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use crate::experts::ExpertUses;

/// Where activations come from.
pub(crate) type Memory = Arc<dyn Allocator + Send + Sync>;

/// Numbers that keep their memory from batch to batch.
pub(crate) struct Activation<T> {
    /// None until there are numbers.
    memory: Option<AlignedBuffer>,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T> Default for Activation<T> {
    fn default() -> Self {
        Self { memory: None, len: 0, numbers: PhantomData }
    }
}

impl<T: Element> Activation<T> {
    /// Makes room for `len` numbers, which may be anything.
    pub(crate) fn resize(&mut self, memory: &Memory, len: usize) -> Result<(), AllocError> {
        let bytes = len.saturating_mul(size_of::<T>());
        if bytes > self.memory.as_ref().map_or(0, |memory| memory.len()) {
            self.memory = Some(memory.zeroed(bytes)?);
        }
        self.len = len;
        Ok(())
    }
}

impl<T: Element> Deref for Activation<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.memory.as_ref().map_or(&[], |memory| &memory.typed()[..self.len])
    }
}

impl<T: Element> DerefMut for Activation<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.typed_mut()[..self.len])
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for Activation<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Cosine and sine of every pair of a position.
pub(super) const ANGLE: usize = 2;

/// The activations of a batch.
#[derive(Default)]
pub(super) struct Activations {
    /// What the tokens are.
    pub(super) ids: Activation<u32>,
    /// Cosines and sines of the tokens' positions, `[token][pair][2]`.
    pub(super) angles: Activation<f32>,
    /// The residual stream, `tokens x hidden`.
    pub(super) x: Activation<f32>,
    /// What the last LayerNorm made of it.
    pub(super) normed: Activation<f32>,
    pub(super) q: Activation<f32>,
    pub(super) k: Activation<f32>,
    pub(super) v: Activation<f32>,
    /// Attention's output before the o projection, `tokens x q_dim`.
    pub(super) mixed: Activation<f32>,
    /// Router logits, `tokens x experts`.
    pub(super) router: Activation<f32>,
    /// The experts of each token, `tokens x 2`.
    pub(super) chosen: Activation<u32>,
    /// Their weights.
    pub(super) chosen_weights: Activation<f32>,
    pub(super) uses: ExpertUses,
    /// `uses x expert width`; later the product with `up`.
    pub(super) gate: Activation<f32>,
    pub(super) up: Activation<f32>,
    /// `uses x hidden`.
    pub(super) down: Activation<f32>,
    /// `wanted tokens x vocab`.
    pub(super) logits: Activation<f32>,
    /// The id of the largest logit of each wanted token.
    pub(super) best: Activation<u32>,
}

impl Activations {
    /// Makes room for a batch of `tokens`, with logits for `wanted` of them.
    pub(super) fn resize(
        &mut self,
        memory: &Memory,
        c: &PhimoeConfig,
        tokens: usize,
        wanted: usize,
    ) -> Result<(), AllocError> {
        let uses = EXPERTS_PER_TOKEN * tokens;
        for (activation, len) in [
            (&mut self.angles, tokens * c.head_dim / 2 * ANGLE),
            (&mut self.x, tokens * c.hidden_size),
            (&mut self.normed, tokens * c.hidden_size),
            (&mut self.q, tokens * c.q_dim()),
            (&mut self.mixed, tokens * c.q_dim()),
            (&mut self.k, tokens * c.kv_dim()),
            (&mut self.v, tokens * c.kv_dim()),
            (&mut self.router, tokens * c.n_experts),
            (&mut self.chosen_weights, uses),
            (&mut self.gate, uses * c.expert_width),
            (&mut self.up, uses * c.expert_width),
            (&mut self.down, uses * c.hidden_size),
            (&mut self.logits, wanted * c.vocab_size),
        ] {
            activation.resize(memory, len)?;
        }
        self.ids.resize(memory, tokens)?;
        self.best.resize(memory, wanted)?;
        self.chosen.resize(memory, uses)?;
        self.uses.resize(memory, tokens, c.n_experts)
    }
}
