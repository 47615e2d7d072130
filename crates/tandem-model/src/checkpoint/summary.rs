//! What a model is, in numbers: weights, bytes and encodings per component, and bytes read per token.

use std::collections::BTreeMap;

use tandem_formats::DType;

use crate::catalogue::Component;
use crate::config::EXPERTS_PER_TOKEN;
use crate::{PhimoeConfig, TensorId, catalogue};

/// Numbers of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComponentSummary {
    /// Tensors of the catalogue (each expert's matrix counts as one).
    pub tensors: usize,
    /// Weights.
    pub weights: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Weights that one decoded token uses.
    pub weights_per_token: u64,
    /// Bytes that must be read to decode one token.
    pub bytes_per_token: u64,
    /// Weights by encoding.
    pub types: BTreeMap<DType, u64>,
}

/// Numbers of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// By component.
    pub components: BTreeMap<Component, ComponentSummary>,
}

impl Summary {
    /// Adds up the catalogue of a model whose tensors have the encodings that `dtype` gives.
    ///
    /// A token reads one row of the embedding, two of a layer's experts, and all of everything else.
    ///
    /// # Panics
    /// If a row is no whole number of blocks of its encoding.
    pub fn of(config: &PhimoeConfig, dtype: impl Fn(TensorId) -> DType) -> Self {
        let mut summary = Self::default();
        for id in catalogue(config) {
            let component = id.component();
            let sum = summary.components.entry(component).or_default();
            let (dtype, (rows, cols)) = (dtype(id), id.shape(config));
            let row_bytes = dtype.bytes_for(cols).expect("whole blocks") as u64;
            let (weights, bytes) = ((rows * cols) as u64, rows as u64 * row_bytes);
            sum.tensors += 1;
            sum.weights += weights;
            sum.bytes += bytes;
            *sum.types.entry(dtype).or_default() += weights;
            if component == Component::Embedding {
                sum.weights_per_token += cols as u64;
                sum.bytes_per_token += row_bytes;
            } else if component != Component::Experts {
                sum.weights_per_token += weights;
                sum.bytes_per_token += bytes;
            }
        }
        // Experts of a layer have equal shapes; where their encodings differ, this is the mean over the experts.
        let experts = config.n_experts as u64;
        if let Some(sum) = summary.components.get_mut(&Component::Experts) {
            sum.weights_per_token = sum.weights * EXPERTS_PER_TOKEN as u64 / experts;
            sum.bytes_per_token = sum.bytes * EXPERTS_PER_TOKEN as u64 / experts;
        }
        summary
    }

    /// The sum over all components.
    pub fn total(&self) -> ComponentSummary {
        let mut total = ComponentSummary::default();
        for c in self.components.values() {
            total.tensors += c.tensors;
            total.weights += c.weights;
            total.bytes += c.bytes;
            total.weights_per_token += c.weights_per_token;
            total.bytes_per_token += c.bytes_per_token;
            for (&dtype, &n) in &c.types {
                *total.types.entry(dtype).or_default() += n;
            }
        }
        total
    }
}
