//! Products of weights with activations, enqueued.

use tandem_cpu::Cpu;
use tandem_gpu::ops::{
    self, Dense, ExpertInput, ExpertWeights, FloatExperts, Output, Precision, Quantized,
    QuantizedRoom, Uses,
};
use tandem_gpu::{ExpertCache, HeldExperts, Region, RegionMut, Result, Scope};
use tandem_memory::PackedType;
use tandem_model::TensorId;

use super::weights::{Expert, Experts, LentWeights, Matrix, load_expert};
use crate::executor::input::{Activated, Left};

/// Weights, and the activations that go into products with them.
pub(in crate::executor) struct Products<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    pub(super) weights: LentWeights<'scope>,
    /// Threads that bring experts to where they are uploaded from.
    cpu: &'scope Cpu,
    input: InEightBits<'scope>,
    /// The experts that the batch uses, where that must be known.
    used: Vec<usize>,
    held: Option<HeldExperts<'scope>>,
}

/// Activations in 8 bits.
pub(in crate::executor) struct InEightBits<'scope> {
    /// Room for others; none where what is there is all that is needed.
    pub(in crate::executor) room: Option<QuantizedRoom<'scope>>,
    /// What is there.
    pub(in crate::executor) there: Option<(Activated, Quantized<'scope>)>,
}

/// Activations that go into products: so many numbers, which are in f32 where weights are not packed.
#[derive(Clone)]
pub(in crate::executor) struct Plain<'scope> {
    pub(in crate::executor) what: Activated,
    pub(in crate::executor) numbers: usize,
    pub(in crate::executor) x: Option<Region<'scope, f32>>,
}

/// A dense product: weights, bias, and where it goes.
pub(in crate::executor) type DenseProduct<'scope> =
    (TensorId, Option<TensorId>, RegionMut<'scope, f32>);

impl<'scope> Plain<'scope> {
    pub(super) fn of(what: Activated, x: &Region<'scope, f32>) -> Self {
        Self { what, numbers: x.len(), x: Some(x.clone()) }
    }

    fn x(&self) -> &Region<'scope, f32> {
        let Some(x) = &self.x else { panic!("{:?}: only in 8 bits", self.what) };
        x
    }
}

impl<'scope> InEightBits<'scope> {
    /// What is there, and nothing else.
    pub(in crate::executor) fn only(there: Option<(Activated, Quantized<'scope>)>) -> Self {
        Self { room: None, there }
    }

    /// Activations as packed weights take them: quantized once for all products they go into.
    fn of(
        &mut self,
        scope: &Scope<'_, '_>,
        x: &Plain<'scope>,
        cols: usize,
        precision: Precision,
    ) -> Result<Quantized<'scope>> {
        match &self.there {
            Some((of, quantized)) if *of == x.what => Ok(quantized.clone()),
            _ => {
                let quantized = self.room().fill(scope, x.x(), cols, precision)?;
                self.there = Some((x.what, quantized.clone()));
                Ok(quantized)
            }
        }
    }

    fn room(&self) -> &QuantizedRoom<'scope> {
        let Some(room) = &self.room else { panic!("an input that nobody has quantized") };
        room
    }
}

impl<'scope, 'env> Products<'scope, 'env> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        weights: LentWeights<'scope>,
        cpu: &'scope Cpu,
        input: InEightBits<'scope>,
        used: Vec<usize>,
    ) -> Self {
        Self { scope, weights, cpu, input, used, held: None }
    }

    /// Activations have changed.
    pub(super) fn clear(&mut self) {
        self.input.there = None;
    }

    /// Activations have changed to what `fill` has left in the room.
    pub(super) fn quantized_by(
        &mut self,
        what: Activated,
        fill: impl FnOnce(&QuantizedRoom<'scope>) -> Result<Quantized<'scope>>,
    ) -> Result<()> {
        let quantized = fill(self.input.room())?;
        self.input.there = Some((what, quantized));
        Ok(())
    }

    /// What is in 8 bits at the end.
    pub(super) fn left(&self) -> Option<Left> {
        let (of, quantized) = self.input.there.as_ref()?;
        let (cols, precision) = (quantized.cols(), quantized.precision());
        Some(Left { of: *of, numbers: quantized.tokens() * cols, cols, precision })
    }

    /// `out = W x + b`, or that is added to `out`, of some matrices with one input. Of each matrix as many rows are used,
    /// from the first on, as `out` has room for.
    pub(in crate::executor) fn dense(
        &mut self,
        products: &[DenseProduct<'scope>],
        x: &Plain<'scope>,
        output: Output,
    ) -> Result<()> {
        let mut packed = Vec::with_capacity(products.len());
        for (weights, bias, out) in products {
            let matrix = self.weights.matrix(self.scope, *weights)?;
            let rows = out.len() * matrix.cols() / x.numbers;
            let bias = bias.map(|bias| self.weights.vector(bias).slice(0..rows));
            match matrix {
                Matrix::Packed(matrix) => packed.push((matrix.first_rows(rows), bias, out)),
                Matrix::Rows(matrix) => {
                    let matrix = matrix.first_rows(rows);
                    ops::matmul_rows(self.scope, &matrix, bias.as_ref(), x.x(), output, out)?;
                }
            }
        }
        let Some((first, ..)) = packed.first() else { return Ok(()) };
        let x = self.input.of(self.scope, x, first.cols(), Precision::Bits8)?;
        let products: Vec<Dense<'_, '_>> = packed
            .iter()
            .map(|(weights, bias, out)| Dense { weights, bias: bias.as_ref(), out })
            .collect();
        ops::matmul_all(self.scope, &products, &x, output)
    }

    /// `out = W x` for every use of an expert, of some of its matrices with one input. Of each matrix as many rows are
    /// used, from the first on, as `out` has room for.
    ///
    /// Where the device has only some of the experts, those that are there are computed with while the others are
    /// uploaded, some at a time.
    pub(in crate::executor) fn experts(
        &mut self,
        layer: usize,
        products: &[(Expert, RegionMut<'scope, f32>)],
        uses: &Uses<'scope>,
        x: &Plain<'scope>,
    ) -> Result<()> {
        let Some(cache) = self.weights.expert_memory().cache() else {
            return self.experts_that_are_there(layer, products, uses, x);
        };
        if self.held.as_ref().is_none_or(|held| held.layer() != layer) {
            self.held = None;
            let mut held = cache.hold(self.scope, layer);
            let steps = steps(cache, layer, &self.used);
            // Kernels that cannot tell experts apart compute all of them at once.
            let apart = steps.len() > 1 && uses.of_experts(&[]).is_some();
            let (model, cpu) = (self.weights.model(), self.cpu);
            for experts in &steps {
                held.take(experts, |id, into| load_expert(model, cpu, id, into))?;
                if let Some(uses) = uses.of_experts(experts).filter(|_| apart) {
                    self.held = Some(held);
                    self.experts_that_are_there(layer, products, &uses, x)?;
                    self.scope.submit()?;
                    let Some(again) = self.held.take() else { return Ok(()) };
                    held = again;
                }
            }
            self.held = Some(held);
            if apart {
                return Ok(());
            }
        }
        self.experts_that_are_there(layer, products, uses, x)?;
        if products.iter().any(|(matrix, _)| matches!(matrix, Expert::Down)) {
            self.held = None;
        }
        Ok(())
    }

    /// Uploads experts that a layer is likely to use, while the device is at what was enqueued before.
    pub(super) fn prefetch_experts(&self, layer: usize, tokens: usize) -> Result<()> {
        let Some(cache) = self.weights.expert_memory().cache() else { return Ok(()) };
        let count = cache.prefetched_at_once().min(2 * tokens);
        if count == 0 {
            return Ok(());
        }
        self.scope.submit()?;
        let (model, cpu) = (self.weights.model(), self.cpu);
        cache.prefetch(layer, count, |id, into| load_expert(model, cpu, id, into))
    }

    fn experts_that_are_there(
        &mut self,
        layer: usize,
        products: &[(Expert, RegionMut<'scope, f32>)],
        uses: &Uses<'scope>,
        x: &Plain<'scope>,
    ) -> Result<()> {
        let gated = x.what == Activated::Gated;
        let input = if gated { ExpertInput::OfUses } else { ExpertInput::OfTokens };
        let mut packed: Vec<(ExpertWeights<'_>, &RegionMut<'_, f32>)> = Vec::new();
        for (which, out) in products {
            let rows = out.len() / uses.n_results();
            match self.weights.experts(self.scope, layer, *which, self.held.as_ref())? {
                Experts::Packed(matrix) => packed.push((matrix.first_rows(rows), out)),
                Experts::Rows(matrix) => {
                    let matrix: FloatExperts<'_> = matrix.first_rows(rows);
                    ops::matmul_experts_rows(self.scope, &matrix, uses, x.x(), input, out)?;
                }
            }
        }
        let Some((first, _)) = packed.first() else { return Ok(()) };
        let precision = if gated { down_precision(first.kind()) } else { Precision::Bits8 };
        let x = self.input.of(self.scope, x, first.cols(), precision)?;
        let products: Vec<_> = packed.iter().map(|(weights, out)| (weights, *out)).collect();
        ops::matmul_experts(self.scope, &products, uses, &x, input)
    }
}

/// How exactly what goes into down projections is quantized: as on the CPU, see `down_precision` there.
pub(super) fn down_precision(kind: PackedType) -> Precision {
    match kind {
        PackedType::Q4_0 => Precision::Bits8,
        PackedType::Q8_0 => Precision::Bits16,
    }
}

/// Experts that are used, in the order in which they are best computed with: those that are there, and then the others, a
/// staging buffer's worth at a time.
fn steps(cache: &ExpertCache, layer: usize, used: &[usize]) -> Vec<Vec<usize>> {
    let (there, missing): (Vec<usize>, Vec<usize>) =
        used.iter().partition(|&&expert| cache.has(layer, expert));
    let first = (!there.is_empty()).then_some(there);
    let others = missing.chunks(cache.experts_per_buffer()).map(<[usize]>::to_vec);
    first.into_iter().chain(others).collect()
}
