//! Some experts on the GPU, the others on the CPU: uses are ordered by expert, so those of a run of experts are a run too.

use std::ops::Range;

use tandem_cpu::ops::{self, Precision, Product};

use super::Both;
use super::split::Split;
use crate::error::Result;
use crate::executor::activations::{Activation, Activations};
use crate::executor::cpu::{Activated, down_precision};
use crate::executor::igpu::{Expert, cost};
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
        let (bytes, arithmetic) = cost(self.model, self.batch, step);
        let uses = &mut self.activations.uses;
        let part = uses.restrict(on_igpu);
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
    /// Where the GPU writes.
    room: &'a mut [f32],
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
        let count = selected.len();
        if self.bring(x)? {
            uses.upload(self.igpu.gpu())?;
        }
        let first_launch = self.igpu.gpu().launches();
        // The GPU has room of its own for the results of all uses, and writes those of its experts there.
        let (mut rooms, mut copy) = self.parts.both_sides();
        let mut results = products.map(|(which, out)| {
            let rows = out.len() / count;
            let (before, rest) = out.split_at_mut(part.start * rows);
            let (igpu, after) = rest.split_at_mut(part.len() * rows);
            let room = rooms.split_off_mut(..count * rows).unwrap_or_default();
            Results { which, rows, room, before, igpu, after }
        });
        let (x, input, profile) = (&*x, &mut *self.input, &mut *self.profile);
        self.igpu.products(model, |scope, mut products| {
            let lent = x.lend(scope)?;
            let uses = uses.lend_part(scope)?;
            let copy = copy.as_deref_mut().map(|copy| scope.vec_mut(copy)).transpose()?;
            let (mut at, mut rest) = (0, Vec::with_capacity(N));
            for Results { which, rows, room, before, after, .. } in &mut results {
                let len = room.len();
                let out = Split::lend(room, at, copy.as_ref(), scope)?;
                products.experts((layer, *which), &uses, (what, &lent), &out)?;
                at += len;
                rest.push((*which, *rows, &mut **before, &mut **after));
            }
            scope.submit()?;
            let input = input.of(cpu, (what, x), &whole, precision);
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
        self.igpu.add_times(self.profile, first_launch, &[(operation, launches)])?;
        let mut at = 0;
        for Results { rows, room, igpu, .. } in results {
            let computed = part.start * rows..part.end * rows;
            match &copy {
                Some(copy) => self.igpu.gpu().read_at(copy, at + computed.start, igpu)?,
                None => igpu.copy_from_slice(&room[computed]),
            }
            at += room.len();
        }
        self.profile.lap(operation);
        Ok(())
    }
}
