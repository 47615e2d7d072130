//! Which operations hold the bandwidth token.

use crate::profile::Operation;

/// The set of operations that need a permit of the [`BandwidthToken`](super::BandwidthToken).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeavyOperations([bool; Operation::ALL.len()]);

/// Names for what operations read, and which operations read it.
const LOADS: [(&str, &[Operation]); 4] = [
    ("expert_weight_load", &[Operation::ExpertFfnW1, Operation::ExpertFfnW2]),
    ("attention_kv_cache_load", &[Operation::AttentionCompute]),
    ("embedding_lookup", &[Operation::Embedding]),
    ("lm_head", &[Operation::LmHead]),
];

impl Default for HeavyOperations {
    /// All of the four loads: experts' weights, keys and values, the embedding, lm_head.
    fn default() -> Self {
        let mut heavy = Self::none();
        LOADS.iter().for_each(|(_, operations)| heavy.insert(operations));
        heavy
    }
}

impl HeavyOperations {
    /// No operation: nobody waits for the token.
    pub const fn none() -> Self {
        Self([false; Operation::ALL.len()])
    }

    /// The operations of such names: `expert_weight_load`, `attention_kv_cache_load`, `embedding_lookup`, `lm_head`, or
    /// the name of an operation ([`Operation::name`]).
    ///
    /// # Errors
    /// When there is no such name.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownHeavy> {
        let mut heavy = Self::none();
        for name in names {
            if let Some((_, operations)) = LOADS.iter().find(|(load, _)| *load == name) {
                heavy.insert(operations);
            } else if let Some(operation) = Operation::ALL.iter().find(|o| o.name() == name) {
                heavy.insert(&[*operation]);
            } else {
                return Err(UnknownHeavy { found: name.to_owned() });
            }
        }
        Ok(heavy)
    }

    /// Whether `operation` needs a permit.
    pub const fn contains(&self, operation: Operation) -> bool {
        self.0[operation as usize]
    }

    fn insert(&mut self, operations: &[Operation]) {
        for &operation in operations {
            self.0[operation as usize] = true;
        }
    }
}

/// A name that is not that of a heavy operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "heavy_operations: expected expert_weight_load, attention_kv_cache_load, embedding_lookup, lm_head or the name of \
     an operation, found {found:?}"
)]
pub struct UnknownHeavy {
    /// The name.
    pub found: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations(heavy: HeavyOperations) -> Vec<Operation> {
        Operation::ALL.into_iter().filter(|&operation| heavy.contains(operation)).collect()
    }

    #[test]
    fn loads_and_operations_have_names() {
        use Operation::{
            AttentionCompute, AttentionQkvProj, Embedding, ExpertFfnW1, ExpertFfnW2, LmHead,
        };
        let named = |names: &[&str]| HeavyOperations::named(names.iter().copied()).map(operations);
        assert_eq!(named(&[]), Ok(vec![]));
        assert_eq!(named(&["expert_weight_load"]), Ok(vec![ExpertFfnW1, ExpertFfnW2]));
        assert_eq!(named(&["lm_head", "attention_qkv_proj"]), Ok(vec![AttentionQkvProj, LmHead]));
        let all = vec![Embedding, AttentionCompute, ExpertFfnW1, ExpertFfnW2, LmHead];
        assert_eq!(operations(HeavyOperations::default()), all);
    }

    #[test]
    fn another_name_is_refused() {
        let message = HeavyOperations::named(["lm_head", "lm_haed"]).unwrap_err().to_string();
        assert!(message.ends_with("found \"lm_haed\""), "{message}");
    }
}
