//! Some experts on the GPU, the others on the CPU: uses are ordered by expert, so those of a run of experts are a run too.

use std::ops::Range;

use tandem_cpu::ops::{self, Precision, Product};

use super::split::Split;
use super::{Both, all_packed};
use crate::error::Result;
use crate::executor::activations::{Activation, Activations};
use crate::executor::cpu::down_precision;
use crate::executor::igpu::{Expert, Plain, cost};
use crate::executor::input::Activated;
use crate::executor::pass::Pass;
use crate::experts::ExpertUses;
use crate::plan::{ExpertRange, Step};
use crate::profile::Operation as Op;

impl Pass<'_> {
    /// Computes one product of experts, some of them on the GPU.
    pub(in crate::executor) fn by_expert(
        &mut self,
        step: Step,
        on_igpu: ExpertRange,
    ) -> Result<()> {
        let layer = usize::from(step.layer.unwrap_or_default());
        let used = self.activations.uses.experts().count();
        let (bytes, arithmetic) = cost(self.model, self.batch, step, Some(used));
        let uses = &mut self.activations.uses;
        let part = uses.of(on_igpu);
        let share = part.len() as f64 / uses.tokens.len().max(1) as f64;
        let given = |whole: usize| (whole as f64 * share) as usize;
        self.profile.given_to_gpu(step.operation, given(bytes), given(arithmetic));
        let (mut both, acts) = self.both(step.operation, share as f32);
        let Activations { normed, gate, up, down, uses, .. } = acts;
        match step.operation {
            Op::ExpertFfnW1 => both.by_expert(
                (layer, on_igpu, part),
                (Activated::Normed, normed),
                uses,
                [(Expert::Gate, &mut gate[..]), (Expert::Up, &mut up[..])],
            ),
            Op::ExpertFfnW2 => both.by_expert(
                (layer, on_igpu, part),
                (Activated::Gated, gate),
                uses,
                [(Expert::Down, &mut down[..])],
            ),
            other => panic!("{} is not of experts", other.name()),
        }
    }
}

/// Results of a product: those of uses before the GPU's, the GPU's, and those after.
struct Results<'a> {
    which: Expert,
    /// Rows of the matrix.
    rows: usize,
    before: &'a mut [f32],
    igpu: &'a mut [f32],
    after: &'a mut [f32],
}

impl Both<'_> {
    /// Products of the uses of a layer's experts: those of `part` on the GPU.
    fn by_expert<const N: usize>(
        &mut self,
        (layer, on_igpu, part): (usize, ExpertRange, Range<usize>),
        (what, x): (Activated, &mut Activation<f32>),
        uses: &mut ExpertUses,
        products: [(Expert, &mut [f32]); N],
    ) -> Result<()> {
        let Self { cpu, model, operation, .. } = *self;
        let matrix = |which: Expert, expert| model.layer(layer).matrix(which.tensor(expert));
        let whole = products.each_ref().map(|(which, _)| matrix(*which, 0));
        let gated = what == Activated::Gated;
        let precision = if gated { down_precision(whole[0]) } else { Precision::Bits8 };
        // Both devices look at the uses; the CPU at a copy of its own.
        let selected = if gated { uses.numbers.clone() } else { uses.tokens.to_vec() };
        let experts: Vec<(u16, Range<usize>)> =
            uses.experts().filter(|(expert, _)| !on_igpu.contains(*expert)).collect();
        let (count, numbers) = (selected.len(), x.len());
        if self.bring((what, x), numbers, &whole, precision)? {
            uses.upload(self.igpu.gpu())?;
        }
        let on_gpu: Vec<usize> = uses
            .experts()
            .map(|(expert, _)| expert)
            .filter(|expert| on_igpu.contains(*expert))
            .map(usize::from)
            .collect();
        let first_launch = self.igpu.gpu().launches();
        let (_, mut copy) = self.parts.both_sides();
        let mut results = products.map(|(which, out)| {
            let rows = out.len() / count;
            let (before, rest) = out.split_at_mut(part.start * rows);
            let (igpu, after) = rest.split_at_mut(part.len() * rows);
            Results { which, rows, before, igpu, after }
        });
        let (x, input, profile) = (&*x, &*self.input, &mut *self.profile);
        let of_part = part.clone();
        self.igpu.products(model, cpu, input, &on_gpu, |scope, mut products| {
            let plain = (!all_packed(&whole)).then(|| x.lend(scope)).transpose()?;
            let lent = Plain { what, numbers, x: plain };
            let uses = uses.lend(scope)?;
            let Some(uses) = uses.of_experts(&on_gpu) else {
                panic!("{} experts are too many to tell apart", uses.n_experts())
            };
            let uses = uses.with_results(of_part);
            let copy = copy.as_deref_mut().map(|copy| scope.vec_mut(copy)).transpose()?;
            let (mut at, mut given, mut rest) = (0, Vec::with_capacity(N), Vec::with_capacity(N));
            for Results { which, rows, before, igpu, after } in &mut results {
                let len = igpu.len();
                if len > 0 {
                    let out = Split::lend(&mut **igpu, at, copy.as_ref(), scope)?;
                    given.push((*which, out));
                }
                at += len;
                rest.push((*which, *rows, &mut **before, &mut **after));
            }
            if !given.is_empty() {
                products.experts(layer, &given, &uses, &lent)?;
            }
            scope.submit()?;
            let input = input.on_cpu(x, &whole);
            let mut products = Vec::with_capacity(N * experts.len());
            for (which, rows, mut before, mut after) in rest {
                for (expert, range) in &experts {
                    let outs = if *expert < on_igpu.first { &mut before } else { &mut after };
                    let out = outs.split_off_mut(..range.len() * rows).unwrap_or_default();
                    let input = input.select(&selected[range.clone()]);
                    products.push(Product::new(matrix(which, *expert), None, input, out));
                }
            }
            ops::matmul_all(cpu, &mut products);
            profile.products(operation, &products);
            Ok(())
        })?;
        self.profile.waited(operation);
        let launches = self.igpu.gpu().launches();
        self.igpu.take_times(self.profile, first_launch, &[(operation, launches)])?;
        let mut at = 0;
        for Results { igpu, .. } in results {
            if let Some(copy) = &copy {
                self.igpu.gpu().read_at(copy, at, igpu)?;
            }
            at += igpu.len();
        }
        self.profile.lap(operation);
        Ok(())
    }
}
