//! Products of weights with activations, enqueued.

use tandem_gpu::ops::{self, ExpertInput, Output, Precision, Quantized, Uses};
use tandem_gpu::{Region, RegionMut, Result, Scope};
use tandem_memory::PackedType;
use tandem_model::TensorId;

use super::weights::{Expert, Experts, LentWeights, Matrix};
use crate::executor::cpu::Activated;

/// Weights, and the activations that go into products with them.
pub(in crate::executor) struct Products<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    pub(super) weights: LentWeights<'scope>,
    /// Room for activations in 8 bits.
    room: Quantized<'scope>,
    /// Which are there.
    of: Option<Activated>,
}

impl<'scope, 'env> Products<'scope, 'env> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        weights: LentWeights<'scope>,
        room: Quantized<'scope>,
    ) -> Self {
        Self { scope, weights, room, of: None }
    }

    /// Activations have changed.
    pub(super) fn clear(&mut self) {
        self.of = None;
    }

    /// `out = W x + b`, or that is added to `out`. Of the matrix as many rows are used, from the first on, as `out` has
    /// room for.
    pub(in crate::executor) fn dense(
        &mut self,
        (weights, bias): (TensorId, Option<TensorId>),
        (what, x): (Activated, &Region<'scope, f32>),
        output: Output,
        out: &RegionMut<'scope, f32>,
    ) -> Result<()> {
        let matrix = self.weights.matrix(self.scope, weights)?;
        let rows = out.len() * matrix.cols() / x.len();
        let bias = bias.map(|bias| self.weights.vector(bias).slice(0..rows));
        match matrix {
            Matrix::Packed(matrix) => {
                let x = self.in_8_bits(what, x, matrix.cols(), Precision::Bits8)?;
                let matrix = matrix.first_rows(rows);
                ops::matmul(self.scope, &matrix, bias.as_ref(), &x, output, out)
            }
            Matrix::Rows(matrix) => {
                let matrix = matrix.first_rows(rows);
                ops::matmul_rows(self.scope, &matrix, bias.as_ref(), x, output, out)
            }
        }
    }

    /// `out = W x` for every use of an expert. Of each matrix as many rows are used, from the first on, as `out` has room
    /// for.
    pub(in crate::executor) fn experts(
        &mut self,
        (layer, matrix): (usize, Expert),
        uses: &Uses<'scope>,
        (what, x): (Activated, &Region<'scope, f32>),
        out: &RegionMut<'scope, f32>,
    ) -> Result<()> {
        let gated = what == Activated::Gated;
        let input = if gated { ExpertInput::OfUses } else { ExpertInput::OfTokens };
        let rows = out.len() / uses.len();
        match self.weights.experts(self.scope, layer, matrix)? {
            Experts::Packed(matrix) => {
                // As precise as on the CPU: see `down_precision` there.
                let fine = gated && matrix.kind() == PackedType::Q8_0;
                let precision = if fine { Precision::Bits16 } else { Precision::Bits8 };
                let x = self.in_8_bits(what, x, matrix.cols(), precision)?;
                ops::matmul_experts(self.scope, &matrix.first_rows(rows), uses, &x, input, out)
            }
            Experts::Rows(matrix) => {
                ops::matmul_experts_rows(self.scope, &matrix.first_rows(rows), uses, x, input, out)
            }
        }
    }

    /// Activations as packed weights take them: quantized once for all products they go into.
    fn in_8_bits(
        &mut self,
        what: Activated,
        x: &Region<'scope, f32>,
        cols: usize,
        precision: Precision,
    ) -> Result<Quantized<'scope>> {
        if self.of != Some(what) {
            self.of = Some(what);
            self.room = self.room.refill(self.scope, x, cols, precision)?;
        }
        Ok(self.room.clone())
    }
}
