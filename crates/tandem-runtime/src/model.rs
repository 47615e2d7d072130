//! A model in memory: config and weights, shared by everything that computes with it.

use tandem_cpu::ops::{LayerNorm, MatrixRef, Weights};
use tandem_memory::{Allocator, Packing, StoredTensor, SystemMemory, WeightStore};
use tandem_model::catalogue::LayerTensor;
use tandem_model::{Checkpoint, PhimoeConfig, TensorId};

use crate::error::Result;

/// Config and weights of a loaded model. Read-only, so one copy serves every sequence.
pub struct Model {
    config: PhimoeConfig,
    weights: WeightStore,
}

impl Model {
    /// Reads all weights of `checkpoint`. `progress` is told bytes of its files as they are done, from any thread.
    ///
    /// # Errors
    /// Where memory is short, a file cannot be read, or a weight is not finite.
    pub fn load(
        checkpoint: &Checkpoint,
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        Self::load_in(&SystemMemory, checkpoint, Packing::Packed, threads, progress)
    }

    /// As [`Self::load`], with every matrix as it is in the file, so that all activations stay f32: the exact path,
    /// to compare with.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_exact(
        checkpoint: &Checkpoint,
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        Self::load_in(&SystemMemory, checkpoint, Packing::AsInFile, threads, progress)
    }

    /// As [`Self::load`], into memory from `allocator`: that of a GPU, which then uses the weights in place.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_in(
        allocator: &dyn Allocator,
        checkpoint: &Checkpoint,
        packing: Packing,
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        let weights = WeightStore::load_in(allocator, checkpoint, packing, threads, progress)?;
        Ok(Self { config: checkpoint.config().clone(), weights })
    }

    /// The model's shape.
    pub fn config(&self) -> &PhimoeConfig {
        &self.config
    }

    /// Bytes of all weights.
    pub fn n_bytes(&self) -> usize {
        self.weights.n_bytes()
    }

    /// Where all weights are.
    pub(crate) fn weights(&self) -> &WeightStore {
        &self.weights
    }

    /// All weights as words, whatever they mean: to see how fast they can be read.
    pub(crate) fn words(&self) -> &[u64] {
        self.weights.words()
    }

    /// Whether products with experts take 8-bit activations.
    pub fn is_packed(&self) -> bool {
        self.layer(0).matrix(LayerTensor::ExpertGate(0)).is_packed()
    }

    /// A matrix of the model.
    pub(crate) fn matrix(&self, id: TensorId) -> Weights<'_> {
        match self.weights.tensor(id) {
            StoredTensor::Rows(t) => MatrixRef::new(t.dtype, t.rows, t.cols, t.bytes).into(),
            StoredTensor::Packed(matrix) => matrix.into(),
        }
    }

    /// A norm or a bias.
    pub(crate) fn vector(&self, id: TensorId) -> &[f32] {
        self.weights.f32s(id)
    }

    /// The weights of one layer.
    pub(crate) fn layer(&self, index: usize) -> LayerWeights<'_> {
        // The config allows 4096 layers.
        LayerWeights { model: self, index: u16::try_from(index).unwrap_or(u16::MAX) }
    }
}

/// A layer's weights by name.
#[derive(Clone, Copy)]
pub(crate) struct LayerWeights<'a> {
    model: &'a Model,
    index: u16,
}

impl<'a> LayerWeights<'a> {
    pub(crate) fn matrix(self, tensor: LayerTensor) -> Weights<'a> {
        self.model.matrix(TensorId::Layer(self.index, tensor))
    }

    /// The three that one input goes into.
    pub(crate) fn qkv(self) -> [Weights<'a>; 3] {
        [LayerTensor::QWeight, LayerTensor::KWeight, LayerTensor::VWeight].map(|w| self.matrix(w))
    }

    pub(crate) fn vector(self, tensor: LayerTensor) -> &'a [f32] {
        self.model.vector(TensorId::Layer(self.index, tensor))
    }

    pub(crate) fn norm(self, weight: LayerTensor, bias: LayerTensor) -> LayerNorm<'a> {
        let eps = self.model.config.layer_norm_eps;
        LayerNorm { weight: self.vector(weight), bias: self.vector(bias), eps }
    }
}
