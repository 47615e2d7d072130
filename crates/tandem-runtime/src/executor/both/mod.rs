//! One matrix on both devices: the first of its rows on the GPU, the others on the CPU, at the same time and from the one
//! copy of the weights.
//!
//! The GPU's part is enqueued and handed to it first; then the CPU computes its own, and waits for the GPU at the end. A
//! row is computed whole by one device, so the result is what either of them would make of it. With one token both write
//! to the two ends of the result itself; with more, or where the GPU has memory of its own, rows of results are put
//! together afterwards.
//!
//! Experts are split in the rows of gate and up, and then in those of down. To split down by the columns that follow from
//! gate's rows would spare the wait between the two, but then both devices have a part of every sum, and the result is
//! neither's. Experts may also be shared out whole ([`experts`]).

mod experts;
mod split;

use std::ops::Range;

use tandem_cpu::Cpu;
use tandem_cpu::ops::{self, Largest, Precision, Product, Weights};
use tandem_gpu::GpuVec;
use tandem_gpu::ops::Output;
use tandem_model::TensorId;
use tandem_model::catalogue::LayerTensor as L;

use super::activations::{Activation, Activations};
use super::cpu::down_precision;
use super::igpu::{Expert, Igpu, Plain, cost, of_layer};
use super::input::{Activated, ProductInput};
use super::pass::Pass;
use crate::error::Result;
use crate::experts::ExpertUses;
use crate::model::Model;
use crate::plan::Step;
use crate::profile::{Operation as Op, Profile};
use split::{Parts, Split, igpu_rows};

impl Pass<'_> {
    /// Computes one step on both devices, `share` of the rows on the GPU.
    pub(super) fn on_both(&mut self, step: Step, share: f32) -> Result<()> {
        let layer = usize::from(step.layer.unwrap_or_default());
        let used = self.activations.uses.experts().count();
        let (bytes, arithmetic) = cost(self.model, self.batch, step, Some(used));
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
                (Activated::Normed, &mut acts.normed),
                [
                    dense(L::QWeight, L::QBias, &mut acts.q),
                    dense(L::KWeight, L::KBias, &mut acts.k),
                    dense(L::VWeight, L::VBias, &mut acts.v),
                ],
                Output::Replace,
                &[],
            ),
            Op::AttentionOutputProj => both.dense(
                (Activated::Mixed, &mut acts.mixed),
                [dense(L::OWeight, L::OBias, &mut acts.x)],
                Output::Add,
                &[],
            ),
            Op::ExpertFfnW1 => both.experts(
                layer,
                (Activated::Normed, &mut acts.normed),
                &mut acts.uses,
                [(Expert::Gate, &mut acts.gate[..]), (Expert::Up, &mut acts.up[..])],
            ),
            Op::ExpertFfnW2 => both.experts(
                layer,
                (Activated::Gated, &mut acts.gate),
                &mut acts.uses,
                [(Expert::Down, &mut acts.down[..])],
            ),
            Op::LmHead => {
                let (weights, bias) = (TensorId::LmHeadWeight, TensorId::LmHeadBias);
                let head = [Dense { weights, bias, out: &mut acts.logits[..] }];
                both.count = Some(wanted);
                let normed = (Activated::Normed, &mut acts.normed);
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
            count: None,
        };
        (both, self.activations)
    }
}

/// Both devices, and what is split.
struct Both<'a> {
    cpu: &'a Cpu,
    igpu: &'a mut Igpu,
    model: &'a Model,
    input: &'a mut ProductInput,
    profile: &'a mut Profile,
    /// Room for results that are put together.
    parts: &'a mut Activation<f32>,
    operation: Op,
    share: f32,
    /// Numbers of the input, where they are not all.
    count: Option<usize>,
}

/// A dense product that is split.
struct Dense<'a> {
    weights: TensorId,
    bias: TensorId,
    out: &'a mut [f32],
}

impl Both<'_> {
    /// Products of `x` with some matrices.
    fn dense<const N: usize>(
        &mut self,
        (what, x): (Activated, &mut Activation<f32>),
        products: [Dense<'_>; N],
        output: Output,
        largest: &[Largest<'_>],
    ) -> Result<()> {
        let Self { cpu, model, operation, share, .. } = *self;
        let whole = products.each_ref().map(|product| model.matrix(product.weights));
        let names = products.each_ref().map(|product| (product.weights, product.bias));
        let count = self.count.unwrap_or(x.len());
        let tokens = count / whole[0].cols();
        let own_memory = self.bring((what, x), count, &whole, Precision::Bits8)?;
        let apart = own_memory || tokens > 1;
        let first_launch = self.igpu.gpu().launches();
        let (rest, mut copy) = self.parts.both_sides();
        let mut parts = Parts { rest, taken: 0 };
        let mut splits = products
            .map(|product| Split::new(product.out, tokens, share, apart.then_some(&mut parts)));
        // Where results are put together, that is when they are added.
        let direct = if apart { Output::Replace } else { output };
        let (x, input, profile) = (&*x, &*self.input, &mut *self.profile);
        self.igpu.products(model, cpu, input, &[], |scope, mut on_igpu| {
            let plain = (!all_packed(&whole)).then(|| x.lend(scope)).transpose()?;
            let plain = plain.map(|plain| plain.slice(0..count));
            let lent = Plain { what, numbers: count, x: plain };
            let copy = copy.as_deref_mut().map(|copy| scope.vec_mut(copy)).transpose()?;
            let (mut given, mut products) = (Vec::with_capacity(N), Vec::with_capacity(N));
            for (i, split) in splits.iter_mut().enumerate() {
                let (weights, bias) = names[i];
                let out = Split::lend(&mut *split.igpu, split.at, copy.as_ref(), scope)?;
                given.push((weights, Some(bias), out));
                products.push((i, split.first, &mut *split.cpu));
            }
            on_igpu.dense(&given, &lent, direct)?;
            scope.submit()?;
            let input = input.on_cpu(&x[..count], &whole);
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
        finish(self.igpu, cpu, self.profile, operation, (splits, copy), first_launch, output)
    }

    /// Products of the uses of a layer's experts.
    fn experts<const N: usize>(
        &mut self,
        layer: usize,
        (what, x): (Activated, &mut Activation<f32>),
        uses: &mut ExpertUses,
        products: [(Expert, &mut [f32]); N],
    ) -> Result<()> {
        let Self { cpu, model, operation, share, .. } = *self;
        let matrix = |matrix: Expert, expert| model.layer(layer).matrix(matrix.tensor(expert));
        let names = products.each_ref().map(|(which, _)| *which);
        let whole = names.map(|which| matrix(which, 0));
        let gated = what == Activated::Gated;
        let precision = if gated { down_precision(whole[0]) } else { Precision::Bits8 };
        // Both devices look at the uses; the CPU at a copy of its own.
        let selected = if gated { uses.numbers.clone() } else { uses.tokens.to_vec() };
        let experts: Vec<(u16, Range<usize>)> = uses.experts().collect();
        let count = x.len();
        if self.bring((what, x), count, &whole, precision)? {
            uses.upload(self.igpu.gpu())?;
        }
        let first_launch = self.igpu.gpu().launches();
        let (rest, mut copy) = self.parts.both_sides();
        let mut parts = Parts { rest, taken: 0 };
        let mut splits =
            products.map(|(_, out)| Split::new(out, selected.len(), share, Some(&mut parts)));
        let used: Vec<usize> = experts.iter().map(|(expert, _)| usize::from(*expert)).collect();
        let (x, input, profile) = (&*x, &*self.input, &mut *self.profile);
        self.igpu.products(model, cpu, input, &used, |scope, mut on_igpu| {
            let plain = (!all_packed(&whole)).then(|| x.lend(scope)).transpose()?;
            let lent = Plain { what, numbers: count, x: plain };
            let uses = uses.lend(scope)?;
            let copy = copy.as_deref_mut().map(|copy| scope.vec_mut(copy)).transpose()?;
            let (mut given, mut rest) = (Vec::with_capacity(N), Vec::with_capacity(N));
            for (split, which) in splits.iter_mut().zip(names) {
                let out = Split::lend(&mut *split.igpu, split.at, copy.as_ref(), scope)?;
                given.push((which, out));
                rest.push((which, split.first, split.rows - split.first, &mut *split.cpu));
            }
            on_igpu.experts(layer, &given, &uses, &lent)?;
            scope.submit()?;
            let input = input.on_cpu(x, &whole);
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
        let parts = (splits, copy);
        finish(self.igpu, cpu, self.profile, operation, parts, first_launch, Output::Replace)
    }

    /// Quantizes the input for both devices, brings it to a GPU with memory of its own, and makes room for results there;
    /// answers whether it is one.
    fn bring(
        &mut self,
        (what, x): (Activated, &mut Activation<f32>),
        count: usize,
        weights: &[Weights<'_>],
        precision: Precision,
    ) -> Result<bool> {
        self.input.prepare(self.cpu, (what, &x[..count]), weights, precision);
        self.input.bring(self.igpu.gpu())?;
        let Some(gpu) = self.igpu.own_memory() else { return Ok(false) };
        if !all_packed(weights) {
            x.upload(gpu)?;
        }
        self.parts.upload(gpu)?;
        Ok(true)
    }
}

/// Whether 8 bits are all that products with these take.
fn all_packed(weights: &[Weights<'_>]) -> bool {
    weights.iter().all(Weights::is_packed)
}

/// Once both devices are done: brings back what the GPU has written to memory of its own, and puts rows together.
fn finish<const N: usize>(
    igpu: &mut Igpu,
    cpu: &Cpu,
    profile: &mut Profile,
    operation: Op,
    (splits, copy): ([Split<'_>; N], Option<&mut GpuVec<f32>>),
    first_launch: usize,
    output: Output,
) -> Result<()> {
    profile.waited(operation);
    let launches = igpu.gpu().launches();
    igpu.take_times(profile, first_launch, &[(operation, launches)])?;
    for split in splits {
        if let Some(copy) = &copy {
            igpu.gpu().read_at(copy, split.at, split.igpu)?;
        }
        split.join(cpu, output);
    }
    profile.lap(operation);
    Ok(())
}
