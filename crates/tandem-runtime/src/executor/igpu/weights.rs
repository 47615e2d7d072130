//! The model's weights as a device sees them.

use tandem_gpu::ops::{
    ExpertStarts, ExpertWeights, FloatExperts, FloatWeights, PackedWeights, has_float_kernels,
};
use tandem_gpu::{Gpu, GpuVec, Region, Scope, Sharing};
use tandem_memory::StoredTensor;
use tandem_model::TensorId;
use tandem_model::catalogue::LayerTensor as L;

use crate::model::Model;
use crate::profile::Operation as Op;

/// What a device keeps of the weights: where the experts' matrices are and, with memory of its own, a copy of all.
pub(super) struct DeviceWeights {
    copy: Option<GpuVec<u8>>,
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
        let config = model.config();
        let start = |layer, tensor| model.weights().place(TensorId::Layer(layer, tensor)).start;
        let starts = |layer: usize, matrix: Expert| {
            let layer = layer_number(layer);
            let experts = (0u16..).take(config.n_experts);
            let starts: Vec<u64> =
                experts.map(|expert| start(layer, matrix.tensor(expert)) as u64).collect();
            ExpertStarts::new(gpu, &starts)
        };
        let layer = |layer| -> tandem_gpu::Result<_> {
            let [gate, up, down] = Expert::ALL.map(|matrix| starts(layer, matrix));
            Ok([gate?, up?, down?])
        };
        let own = gpu.memory().sharing() == Sharing::None;
        let copy = own.then(|| gpu.upload(model.weights().bytes())).transpose()?;
        Ok(Self {
            copy,
            layers: (0..config.n_layers).map(layer).collect::<tandem_gpu::Result<_>>()?,
        })
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
        Ok(LentWeights { model, all, layers: &self.layers })
    }
}

/// Weights that are lent to a device.
pub(super) struct LentWeights<'scope> {
    model: &'scope Model,
    /// All of them.
    all: Region<'scope, u8>,
    layers: &'scope [[ExpertStarts; 3]],
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
    /// A norm or a bias.
    pub(super) fn vector(&self, id: TensorId) -> Region<'scope, f32> {
        self.all.slice(self.model.weights().place(id)).cast()
    }

    /// A matrix.
    pub(super) fn matrix(
        &self,
        scope: &Scope<'_, '_>,
        id: TensorId,
    ) -> tandem_gpu::Result<Matrix<'scope>> {
        let weights = self.model.weights();
        let bytes = self.all.slice(weights.place(id));
        Ok(match weights.tensor(id) {
            StoredTensor::Packed(matrix) => {
                Matrix::Packed(PackedWeights::new(matrix.layout(), bytes))
            }
            StoredTensor::Rows(t) => {
                Matrix::Rows(FloatWeights::new(t.dtype, t.rows, t.cols, bytes, scope)?)
            }
        })
    }

    /// A matrix of each expert of a layer.
    pub(super) fn experts(
        &self,
        scope: &'scope Scope<'scope, '_>,
        layer: usize,
        which: Expert,
    ) -> tandem_gpu::Result<Experts<'scope>> {
        let first = TensorId::Layer(layer_number(layer), which.tensor(0));
        let (all, starts) = (self.all.clone(), &self.layers[layer][which as usize]);
        Ok(match self.model.weights().tensor(first) {
            StoredTensor::Packed(matrix) => {
                Experts::Packed(ExpertWeights::new(scope, matrix.layout(), all, starts)?)
            }
            StoredTensor::Rows(t) => {
                Experts::Rows(FloatExperts::new(scope, (t.dtype, t.rows, t.cols), all, starts)?)
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
