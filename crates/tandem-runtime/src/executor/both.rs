//! One matrix on both devices: the first of its rows on the GPU, the others on the CPU, at the same time and from the one
//! copy of the weights.
//!
//! The GPU's part is enqueued and handed to it first; then the CPU computes its own, and waits for the GPU at the end. A
//! row is computed whole by one device, so the result is what either of them would make of it. With one token both write
//! to the two ends of the result itself; with more, rows of results are put together afterwards.
//!
//! Experts are split in the rows of gate and up, and then in those of down. To split down by the columns that follow from
//! gate's rows would spare the wait between the two, but then both devices have a part of every sum, and the result is
//! neither's.

use std::ops::Range;

use tandem_cpu::Cpu;
use tandem_cpu::ops::{self, Largest, Precision, Product};
use tandem_gpu::ops::{Output, Uses};
use tandem_memory::packed::TILE_ROWS;
use tandem_model::TensorId;
use tandem_model::catalogue::LayerTensor as L;

use super::activations::Activations;
use super::cpu::{Activated, CpuInput, down_precision};
use super::igpu::{Expert, Igpu, cost, of_layer};
use super::pass::Pass;
use crate::error::Result;
use crate::experts::ExpertUses;
use crate::model::Model;
use crate::plan::Step;
use crate::profile::{Operation as Op, Profile};

impl Pass<'_> {
    /// Computes one step on both devices, `share` of the rows on the GPU.
    pub(super) fn on_both(&mut self, step: Step, share: f32) -> Result<()> {
        let layer = usize::from(step.layer.unwrap_or_default());
        let (bytes, arithmetic) = cost(self.model, self.batch, self.caches[0], step);
        let part = |whole: usize| (whole as f64 * f64::from(share)) as usize;
        self.profile.given_to_gpu(step.operation, part(bytes), part(arithmetic));
        let (wanted, largest) = (self.wanted_numbers(), self.largest);
        let (mut both, acts) = self.both(step.operation, share);
        let dense = |weights, bias, out| Dense {
            weights: of_layer(layer, weights),
            bias: of_layer(layer, bias),
            out,
        };
        match step.operation {
            Op::AttentionQkvProj => both.dense(
                (Activated::Normed, &acts.normed),
                [
                    dense(L::QWeight, L::QBias, &mut acts.q),
                    dense(L::KWeight, L::KBias, &mut acts.k),
                    dense(L::VWeight, L::VBias, &mut acts.v),
                ],
                Output::Replace,
                &[],
            ),
            Op::AttentionOutputProj => both.dense(
                (Activated::Mixed, &acts.mixed),
                [dense(L::OWeight, L::OBias, &mut acts.x)],
                Output::Add,
                &[],
            ),
            Op::ExpertFfnW1 => both.experts(
                layer,
                (Activated::Normed, &acts.normed),
                &mut acts.uses,
                [(Expert::Gate, &mut acts.gate[..]), (Expert::Up, &mut acts.up[..])],
            ),
            Op::ExpertFfnW2 => both.experts(
                layer,
                (Activated::Gated, &acts.gate),
                &mut acts.uses,
                [(Expert::Down, &mut acts.down[..])],
            ),
            Op::LmHead => {
                let (weights, bias) = (TensorId::LmHeadWeight, TensorId::LmHeadBias);
                let head = [Dense { weights, bias, out: &mut acts.logits[..] }];
                let normed = (Activated::Normed, &acts.normed[..wanted]);
                both.dense(normed, head, Output::Replace, largest)?;
                self.offer_first(igpu_rows(self.model.config().vocab_size, share));
                Ok(())
            }
            other => panic!("{} cannot be split", other.name()),
        }
    }

    fn both(&mut self, operation: Op, share: f32) -> (Both<'_>, &mut Activations) {
        let Some(igpu) = self.igpu.as_deref_mut() else {
            panic!("a plan for a GPU that is not there");
        };
        let both = Both {
            cpu: self.cpu,
            igpu,
            model: self.model,
            input: self.input,
            profile: self.profile,
            parts: self.parts,
            operation,
            share,
        };
        (both, self.activations)
    }
}

/// Both devices, and what is split.
struct Both<'a> {
    cpu: &'a Cpu,
    igpu: &'a mut Igpu,
    model: &'a Model,
    input: &'a mut CpuInput,
    profile: &'a mut Profile,
    /// Room for results that are put together.
    parts: &'a mut [f32],
    operation: Op,
    share: f32,
}

/// A dense product that is split.
struct Dense<'a> {
    weights: TensorId,
    bias: TensorId,
    out: &'a mut [f32],
}

/// The results of a product, on both devices.
struct Split<'a> {
    /// Rows of the matrix.
    rows: usize,
    /// Those that are the GPU's.
    first: usize,
    /// Where the devices write.
    igpu: &'a mut [f32],
    cpu: &'a mut [f32],
    /// Where results belong, if not there.
    out: Option<&'a mut [f32]>,
}

impl<'a> Split<'a> {
    /// Results of `inputs` tokens or uses, which go through `parts` unless there is one.
    fn new(out: &'a mut [f32], inputs: usize, share: f32, parts: &mut &'a mut [f32]) -> Self {
        let rows = out.len() / inputs;
        let first = igpu_rows(rows, share);
        let (place, out) = if inputs == 1 {
            (out, None)
        } else {
            (parts.split_off_mut(..out.len()).unwrap_or_default(), Some(out))
        };
        let (igpu, cpu) = place.split_at_mut(inputs * first);
        Self { rows, first, igpu, cpu, out }
    }

    /// Puts rows of results together.
    fn join(self, cpu: &Cpu, output: Output) {
        if let Some(out) = self.out {
            let accumulate = output == Output::Add;
            ops::join_rows(cpu, (self.igpu, self.cpu), out, self.rows, accumulate);
        }
    }
}

/// Rows of a matrix that are the GPU's: whole tiles, as near to its share as they come.
fn igpu_rows(rows: usize, share: f32) -> usize {
    let tiles = (rows as f32 * share / TILE_ROWS as f32).round() as usize;
    (tiles * TILE_ROWS).min(rows)
}

impl Both<'_> {
    /// Products of `x` with some matrices.
    fn dense<const N: usize>(
        &mut self,
        (what, x): (Activated, &[f32]),
        products: [Dense<'_>; N],
        output: Output,
        largest: &[Largest<'_>],
    ) -> Result<()> {
        let Self { cpu, model, operation, share, .. } = *self;
        let (input, profile) = (&mut *self.input, &mut *self.profile);
        let whole = products.each_ref().map(|product| model.matrix(product.weights));
        let tokens = x.len() / whole[0].cols();
        let names = products.each_ref().map(|product| (product.weights, product.bias));
        let (first_launch, mut parts) = (self.igpu.gpu().launches(), &mut *self.parts);
        let mut splits = products.map(|product| Split::new(product.out, tokens, share, &mut parts));
        // Where results are put together, that is when they are added.
        let direct = if tokens == 1 { output } else { Output::Replace };
        self.igpu.products(model, |scope, mut on_igpu| {
            let lent = scope.lend(x)?;
            let mut products = Vec::with_capacity(N);
            for (i, split) in splits.iter_mut().enumerate() {
                let (weights, bias) = names[i];
                let out = scope.lend_mut(&mut *split.igpu)?;
                on_igpu.dense((weights, Some(bias)), (what, &lent), direct, &out)?;
                products.push((i, split.first, &mut *split.cpu));
            }
            scope.submit()?;
            let input = input.of(cpu, (what, x), &whole, Precision::Bits8);
            products.retain(|(_, _, out)| !out.is_empty());
            let mut products: Vec<Product<'_>> = products
                .into_iter()
                .map(|(i, first_row, out)| {
                    let bias = Some(&model.vector(names[i].1)[first_row..]);
                    let product = Product::new(whole[i].rows_from(first_row), bias, input, out);
                    Product { accumulate: direct == Output::Add, largest, first_row, ..product }
                })
                .collect();
            ops::matmul_all(cpu, &mut products);
            profile.products(operation, &products);
            Ok(())
        })?;
        self.profile.waited(operation);
        let marks = [(operation, self.igpu.gpu().launches())];
        self.igpu.add_times(self.profile, first_launch, &marks)?;
        splits.into_iter().for_each(|split| split.join(cpu, output));
        self.profile.lap(operation);
        Ok(())
    }

    /// Products of the uses of a layer's experts.
    fn experts<const N: usize>(
        &mut self,
        layer: usize,
        (what, x): (Activated, &[f32]),
        uses: &mut ExpertUses,
        products: [(Expert, &mut [f32]); N],
    ) -> Result<()> {
        let Self { cpu, model, operation, share, .. } = *self;
        let (input, profile) = (&mut *self.input, &mut *self.profile);
        let matrix = |matrix: Expert, expert| model.layer(layer).matrix(matrix.tensor(expert));
        let whole = products.each_ref().map(|(which, _)| matrix(*which, 0));
        let gated = what == Activated::Gated;
        let precision = if gated { down_precision(whole[0]) } else { Precision::Bits8 };
        // Both devices look at the uses; the CPU at a copy of its own.
        let selected = if gated { uses.numbers.clone() } else { uses.tokens.to_vec() };
        let experts: Vec<(u16, Range<usize>)> = uses.experts().collect();
        let names = products.each_ref().map(|(which, _)| *which);
        let (first_launch, mut parts) = (self.igpu.gpu().launches(), &mut *self.parts);
        let mut splits =
            products.map(|(_, out)| Split::new(out, selected.len(), share, &mut parts));
        self.igpu.products(model, |scope, mut on_igpu| {
            let lent = scope.lend(x)?;
            let uses = Uses::new(
                scope.lend_mut(&mut uses.starts[..])?,
                scope.lend_mut(&mut uses.tokens[..])?,
                scope.lend_mut(&mut uses.weights[..])?,
                scope.lend_mut(&mut uses.places[..])?,
            );
            let mut rest = Vec::with_capacity(N);
            for (split, which) in splits.iter_mut().zip(names) {
                let out = scope.lend_mut(&mut *split.igpu)?;
                on_igpu.experts((layer, which), &uses, (what, &lent), &out)?;
                rest.push((which, split.first, split.rows - split.first, &mut *split.cpu));
            }
            scope.submit()?;
            let input = input.of(cpu, (what, x), &whole, precision);
            let mut products = Vec::with_capacity(N * experts.len());
            for (which, first_row, rows, mut outs) in rest.into_iter().filter(|rest| rest.2 > 0) {
                for (expert, range) in &experts {
                    let out = outs.split_off_mut(..range.len() * rows).unwrap_or_default();
                    let weights = matrix(which, *expert).rows_from(first_row);
                    let input = input.select(&selected[range.clone()]);
                    products.push(Product::new(weights, None, input, out));
                }
            }
            ops::matmul_all(cpu, &mut products);
            profile.products(operation, &products);
            Ok(())
        })?;
        self.profile.waited(operation);
        let marks = [(operation, self.igpu.gpu().launches())];
        self.igpu.add_times(self.profile, first_launch, &marks)?;
        splits.into_iter().for_each(|split| split.join(cpu, Output::Replace));
        self.profile.lap(operation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_whole_tiles() {
        assert_eq!([0.0, 0.3, 0.5, 1.0].map(|share| igpu_rows(448, share)), [0, 128, 224, 448]);
        assert_eq!(igpu_rows(70, 1.0), 70);
        assert_eq!(igpu_rows(8, 0.4), 0);
    }
}
