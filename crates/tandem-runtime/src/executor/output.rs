//! What is wanted of a forward pass, and what comes out of it.

use std::ops::Range;

use tandem_memory::KvCache;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::router::Routing;

use super::Executor;
use crate::error::{Result, RuntimeError};

/// For which tokens of a batch logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// For none: lm_head is left out.
    None,
    /// For the last one.
    Last,
    /// For all.
    All,
}

impl LogitsFor {
    /// Which of a batch's tokens these are.
    pub(crate) fn tokens(self, batch: usize) -> Range<usize> {
        match self {
            Self::None => batch..batch,
            Self::Last => batch - 1..batch,
            Self::All => 0..batch,
        }
    }
}

/// What the router decided, layer by layer, token after token.
#[derive(Clone, Debug, Default)]
pub struct RouterTrace {
    /// Per layer `tokens x experts`.
    pub logits: Vec<Vec<f32>>,
    /// Per layer the choices.
    pub routing: Vec<Vec<Routing>>,
}

impl RouterTrace {
    /// Adds what was decided of further tokens.
    pub(super) fn append(&mut self, later: Self) {
        let layers = later.logits.len().max(self.logits.len());
        self.logits.resize_with(layers, Vec::new);
        self.routing.resize_with(layers, Vec::new);
        self.logits.iter_mut().zip(later.logits).for_each(|(all, more)| all.extend(more));
        self.routing.iter_mut().zip(later.routing).for_each(|(all, more)| all.extend(more));
    }

    /// Adds some tokens' logits, and their choices with weights, `[token][2]`.
    pub(super) fn record(&mut self, layer: usize, logits: &[f32], chosen: &[u32], weights: &[f32]) {
        if self.logits.len() <= layer {
            self.logits.resize_with(layer + 1, Vec::new);
            self.routing.resize_with(layer + 1, Vec::new);
        }
        self.logits[layer].extend_from_slice(logits);
        let chosen = chosen.as_chunks::<EXPERTS_PER_TOKEN>().0.iter();
        let weights = weights.as_chunks::<EXPERTS_PER_TOKEN>().0;
        self.routing[layer].extend(chosen.zip(weights).map(|(chosen, &weights)| Routing {
            experts: chosen.map(|expert| expert as usize),
            weights,
        }));
    }
}

/// Runs all of `ids` in batches from the start of `kv`; answers logits for the last token or for all of them.
///
/// # Errors
/// As [`Executor::forward`], where the tokens do not fit the cache, and where logits are not finite.
pub fn evaluate(
    executor: &mut Executor,
    kv: &mut KvCache,
    ids: &[u32],
    wanted: LogitsFor,
    mut trace: Option<&mut RouterTrace>,
) -> Result<Vec<f32>> {
    kv.clear();
    if ids.len() > kv.capacity() {
        return Err(RuntimeError::PromptTooLong { tokens: ids.len(), context: kv.capacity() });
    }
    let mut logits = Vec::new();
    let last = ids.chunks(executor.batch()).count().saturating_sub(1);
    for (n, batch) in ids.chunks(executor.batch()).enumerate() {
        let wanted = if wanted == LogitsFor::Last && n < last { LogitsFor::None } else { wanted };
        logits.extend_from_slice(executor.forward(batch, kv, wanted, trace.as_deref_mut())?);
    }
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err(RuntimeError::NoFiniteLogit);
    }
    Ok(logits)
}
