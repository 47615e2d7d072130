//! Layer normalisation.

use super::activations::prepare_rows;
use super::{Input, Precision, QuantizedActivations, Weights};
use crate::cpu::Cpu;

/// A layer norm: `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, with the biased variance.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// `[width]`.
    pub weight: &'a [f32],
    /// `[width]`.
    pub bias: &'a [f32],
    /// What keeps the root from being 0.
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// Normalises every token: `x` and `out` are `[token][width]`.
    ///
    /// # Panics
    /// When the slices do not fit together.
    pub fn apply(&self, cpu: &Cpu, x: &[f32], out: &mut [f32]) {
        self.check(x, out);
        prepare_rows(cpu, out, self.weight.len(), &|token, out| self.row(cpu, x, token, out));
    }

    /// As [`Self::apply`], and answers the result as the input of the products with `weights`: see [`Input::new`].
    ///
    /// # Panics
    /// As [`Self::apply`] and [`Input::new`].
    pub fn input<'a>(
        &self,
        cpu: &Cpu,
        x: &[f32],
        out: &'a mut [f32],
        (weights, precision): (&[Weights<'_>], Precision),
        buffer: &'a mut QuantizedActivations,
    ) -> Input<'a> {
        self.check(x, out);
        let row = |token: usize, out: &mut [f32]| self.row(cpu, x, token, out);
        Input::prepared(cpu, out, self.weight.len(), (weights, precision), buffer, &row)
    }

    fn check(&self, x: &[f32], out: &[f32]) {
        assert_eq!(self.bias.len(), self.weight.len(), "layer norm bias");
        assert_eq!(out.len(), x.len(), "layer norm output");
    }

    fn row(&self, cpu: &Cpu, x: &[f32], token: usize, out: &mut [f32]) {
        let x = &x[token * out.len()..][..out.len()];
        cpu.kernels().layer_norm(x, self.weight, self.bias, self.eps, out);
    }
}
