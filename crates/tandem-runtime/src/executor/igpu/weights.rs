//! The model's weights as a device sees them.

use std::collections::HashMap;
use std::ops::Range;

use tandem_cpu::Cpu;
use tandem_cpu::ops::copy_bytes;
use tandem_gpu::ops::{
    ExpertStarts, ExpertWeights, FloatExperts, FloatWeights, PackedWeights, has_float_kernels,
};
use tandem_gpu::{
    ExpertId, ExpertMemory, ExpertShape, Gpu, GpuVec, HeldExperts, MATRICES, ModelBytes, Region,
    Scope,
};
use tandem_memory::StoredTensor;
use tandem_model::TensorId;
use tandem_model::catalogue::{Component, LayerTensor as L, catalogue};

use crate::model::Model;
use crate::profile::Operation as Op;

/// Tensors of a copy begin at multiples of this.
const ALIGNMENT: usize = 64;

/// What a device keeps of the weights: where the experts' matrices are and, with memory of its own, a copy of all, or of
/// all but the experts, which then have a cache.
pub(super) struct DeviceWeights {
    copy: Option<GpuVec<u8>>,
    /// Where tensors are in a copy without experts.
    places: HashMap<TensorId, Range<usize>>,
    experts: ExpertMemory,
    /// Of each layer, where experts are not in a cache.
    layers: Vec<[ExpertStarts; 3]>,
}

/// The matrices of a layer's experts.
#[derive(Clone, Copy)]
pub(in crate::executor) enum Expert {
    Gate,
    Up,
    Down,
}

impl Expert {
    const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    pub(in crate::executor) fn tensor(self, expert: u16) -> L {
        match self {
            Self::Gate => L::ExpertGate(expert),
            Self::Up => L::ExpertUp(expert),
            Self::Down => L::ExpertDown(expert),
        }
    }
}

impl DeviceWeights {
    /// Looks up where the weights are, and uploads them where memory is not shared.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub(super) fn new(gpu: &Gpu, model: &Model) -> tandem_gpu::Result<Self> {
        let (places, bytes) = dense_places(model);
        let experts =
            ExpertMemory::new(gpu, ModelBytes { dense: bytes as u64, experts: shape(model) })?;
        let all = model.weights().bytes();
        let (copy, places) = match &experts {
            ExpertMemory::InPlace => (None, HashMap::new()),
            ExpertMemory::Whole => (Some(gpu.upload(all)?), HashMap::new()),
            ExpertMemory::Cache(_) => {
                let mut copy = gpu.zeros(bytes)?;
                for (&id, place) in &places {
                    gpu.write_at(&mut copy, place.start, &all[model.weights().place(id)])?;
                }
                (Some(copy), places)
            }
        };
        let layers = if experts.cache().is_none() { starts(gpu, model)? } else { Vec::new() };
        Ok(Self { copy, places, experts, layers })
    }

    /// Where the experts are.
    pub(super) fn expert_memory(&self) -> &ExpertMemory {
        &self.experts
    }

    /// Lends all weights.
    pub(super) fn lend<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        model: &'scope Model,
    ) -> tandem_gpu::Result<LentWeights<'scope>> {
        let all = match &self.copy {
            Some(copy) => scope.vec(copy)?,
            None => scope.lend(model.weights().bytes())?,
        };
        Ok(LentWeights { model, all, of: self })
    }
}

/// Where each expert's matrices begin among all weights, layer by layer.
fn starts(gpu: &Gpu, model: &Model) -> tandem_gpu::Result<Vec<[ExpertStarts; 3]>> {
    let config = model.config();
    let of = |layer: usize, matrix: Expert| {
        let place = |expert| model.weights().place(of_layer(layer, matrix.tensor(expert)));
        let experts = (0u16..).take(config.n_experts);
        let starts: Vec<u64> = experts.map(|expert| place(expert).start as u64).collect();
        ExpertStarts::new(gpu, &starts)
    };
    let layer = |layer| -> tandem_gpu::Result<_> {
        let [gate, up, down] = Expert::ALL.map(|matrix| of(layer, matrix));
        Ok([gate?, up?, down?])
    };
    (0..config.n_layers).map(layer).collect()
}

/// Where all tensors but the experts' are in a copy, and its bytes.
fn dense_places(model: &Model) -> (HashMap<TensorId, Range<usize>>, usize) {
    let (mut places, mut end) = (HashMap::new(), 0usize);
    for id in catalogue(model.config()).filter(|id| id.component() != Component::Experts) {
        let bytes = model.weights().place(id).len();
        places.insert(id, end..end + bytes);
        end = (end + bytes).next_multiple_of(ALIGNMENT);
    }
    (places, end)
}

/// What the experts are. Layers may differ in encoding: then the largest count.
fn shape(model: &Model) -> ExpertShape {
    let config = model.config();
    let largest = |matrix: Expert| {
        let layers = 0..config.n_layers;
        let bytes =
            layers.map(|layer| model.weights().place(of_layer(layer, matrix.tensor(0))).len());
        bytes.max().unwrap_or(0)
    };
    let matrix_bytes = Expert::ALL.map(largest);
    ExpertShape { n_layers: config.n_layers, n_experts: config.n_experts, matrix_bytes }
}

/// Copies an expert's gate, up and down matrices out of the weights.
pub(super) fn load_expert(model: &Model, cpu: &Cpu, id: ExpertId, into: [&mut [u8]; MATRICES]) {
    let expert = u16::try_from(id.expert).unwrap_or(u16::MAX);
    let weights = model.weights();
    let matrix =
        |which: Expert| &weights.bytes()[weights.place(of_layer(id.layer, which.tensor(expert)))];
    let [gate, up, down] = Expert::ALL.map(matrix);
    let [w1, w3, w2] = into;
    // Places have room for the largest of all layers' matrices.
    copy_bytes(
        cpu,
        [(gate, &mut w1[..gate.len()]), (up, &mut w3[..up.len()]), (down, &mut w2[..down.len()])],
    );
}

/// Weights that are lent to a device.
pub(super) struct LentWeights<'scope> {
    model: &'scope Model,
    /// All of them, or all but the experts.
    all: Region<'scope, u8>,
    of: &'scope DeviceWeights,
}

/// A matrix that is lent to a device.
pub(super) enum Matrix<'scope> {
    Packed(PackedWeights<'scope>),
    Rows(FloatWeights<'scope>),
}

/// A matrix of each expert of a layer, lent to a device.
pub(super) enum Experts<'scope> {
    Packed(ExpertWeights<'scope>),
    Rows(FloatExperts<'scope>),
}

impl Matrix<'_> {
    /// Columns: features of the input.
    pub(super) fn cols(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.cols(),
            Self::Rows(matrix) => matrix.cols(),
        }
    }
}

impl<'scope> LentWeights<'scope> {
    /// The model.
    pub(super) fn model(&self) -> &'scope Model {
        self.model
    }

    /// Where the experts are.
    pub(super) fn expert_memory(&self) -> &'scope ExpertMemory {
        &self.of.experts
    }

    /// A tensor's bytes, which is not an expert's where those have a cache.
    fn bytes(&self, id: TensorId) -> Region<'scope, u8> {
        let place = self.of.places.get(&id).cloned();
        self.all.slice(place.unwrap_or_else(|| self.model.weights().place(id)))
    }

    /// A norm or a bias.
    pub(super) fn vector(&self, id: TensorId) -> Region<'scope, f32> {
        self.bytes(id).cast()
    }

    /// A matrix.
    pub(super) fn matrix(
        &self,
        scope: &Scope<'_, '_>,
        id: TensorId,
    ) -> tandem_gpu::Result<Matrix<'scope>> {
        let bytes = self.bytes(id);
        Ok(match self.model.weights().tensor(id) {
            StoredTensor::Packed(matrix) => {
                Matrix::Packed(PackedWeights::new(matrix.layout(), bytes))
            }
            StoredTensor::Rows(t) => {
                Matrix::Rows(FloatWeights::new(t.dtype, t.rows, t.cols, bytes, scope)?)
            }
        })
    }

    /// A matrix of each expert of a layer; of those that are `held`, where experts have a cache.
    pub(super) fn experts(
        &self,
        scope: &'scope Scope<'scope, '_>,
        layer: usize,
        which: Expert,
        held: Option<&HeldExperts<'scope>>,
    ) -> tandem_gpu::Result<Experts<'scope>> {
        let tensor = self.model.weights().tensor(of_layer(layer, which.tensor(0)));
        let (all, matrix) = (self.all.clone(), which as usize);
        let starts = || &self.of.layers[layer][matrix];
        Ok(match (tensor, held) {
            (StoredTensor::Packed(packed), Some(held)) => {
                Experts::Packed(ExpertWeights::resident(packed.layout(), held, matrix))
            }
            (StoredTensor::Packed(packed), None) => {
                Experts::Packed(ExpertWeights::new(scope, packed.layout(), all, starts())?)
            }
            (StoredTensor::Rows(t), Some(held)) => {
                let shape = (t.dtype, t.rows, t.cols);
                Experts::Rows(FloatExperts::resident(scope, shape, held, matrix)?)
            }
            (StoredTensor::Rows(t), None) => {
                let shape = (t.dtype, t.rows, t.cols);
                Experts::Rows(FloatExperts::new(scope, shape, all, starts())?)
            }
        })
    }
}

/// Why a device has no kernels for an operation's weights; none where it has.
pub(super) fn missing_kernels(model: &Model, operation: Op) -> Option<String> {
    let config = model.config();
    let of_layers = |tensors: &[L]| -> Vec<TensorId> {
        let layers = 0..layer_number(config.n_layers);
        layers.flat_map(|l| tensors.iter().map(move |&t| TensorId::Layer(l, t))).collect()
    };
    let of_experts = |matrices: &[Expert]| -> Vec<TensorId> {
        let experts = (0u16..).take(config.n_experts);
        let tensors: Vec<L> =
            experts.flat_map(|e| matrices.iter().map(move |m| m.tensor(e))).collect();
        of_layers(&tensors)
    };
    let tensors = match operation {
        Op::Embedding => vec![TensorId::TokenEmbedding],
        Op::AttentionQkvProj => of_layers(&[L::QWeight, L::KWeight, L::VWeight]),
        Op::AttentionOutputProj => of_layers(&[L::OWeight]),
        Op::ExpertFfnW1 => of_experts(&[Expert::Gate, Expert::Up]),
        Op::ExpertFfnW2 => of_experts(&[Expert::Down]),
        Op::LmHead => vec![TensorId::LmHeadWeight],
        _ => return None,
    };
    tensors.into_iter().find_map(|id| match model.weights().tensor(id) {
        StoredTensor::Rows(t) if !has_float_kernels(t.dtype) => {
            Some(format!("there are no kernels for weights in {}", t.dtype))
        }
        _ => None,
    })
}

/// A tensor of a layer.
pub(in crate::executor) fn of_layer(layer: usize, tensor: L) -> TensorId {
    TensorId::Layer(layer_number(layer), tensor)
}

/// A layer's number as tensors have it: the config allows 4096 layers.
fn layer_number(layer: usize) -> u16 {
    u16::try_from(layer).unwrap_or(u16::MAX)
}
