//! The inner loops of attention: dot products of queries with stored keys, softmax, and weighted sums of stored values.
//!
//! There are two sets. [`few`] reads keys and values straight from the cache, for a token that comes alone; [`many`]
//! unpacks them first, for the tokens of a prompt. Both are written once, over [`Lanes`](super::lanes::Lanes); an
//! instruction set is a vector type and as many sums as it has registers for.
#![allow(unsafe_code)]

mod few;
mod many;
mod stored;

use tandem_memory::{KV_BLOCK, KvData};

pub(crate) use few::QUERIES;

/// The numbers of [`many`]'s queries, one after the other in this order.
pub(crate) struct Running<'a> {
    /// The largest score so far, or [`f32::MIN`].
    pub(crate) max: &'a mut [f32],
    /// The sum of all weights relative to it.
    pub(crate) sum: &'a mut [f32],
    /// `[query][dim]`, whole strips: the values, weighted likewise.
    pub(crate) mixed: &'a mut [f32],
}

/// The inner loops of attention. Each checks what its memory accesses rely on.
pub(crate) trait AttentionKernels: Sync {
    /// Queries of a panel.
    fn panel(&self) -> usize;

    /// Numbers of a strip of values.
    fn strip(&self) -> usize;

    /// The dot products of all keys (of a multiple of 32 numbers) with [`QUERIES`] queries (`[query][dim]`); `scores` are
    /// `[key][query]`, and have room for a multiple of [`SCORES_STEP`]; what is beyond the last key means nothing. `next` is
    /// where those keys or values begin that are read after these.
    fn scores(&self, keys: KvData<'_>, next: *const u8, q: &[f32], scores: &mut [f32]);

    /// Makes scores weights, relative to each query's largest: answers the largest ones, and the sums of the weights.
    fn softmax(&self, scores: &mut [f32]) -> ([f32; QUERIES], [f32; QUERIES]);

    /// Adds to `out` (`[query][stride]`) all values (of a multiple of 32 numbers), weighted. `next` is as for
    /// [`Self::scores`].
    fn mix(
        &self,
        weights: &[f32],
        values: KvData<'_>,
        next: *const u8,
        dim: usize,
        out: &mut [f32],
        stride: usize,
    );

    /// Unpacks keys to f32 as they lie.
    fn unpack_keys(&self, keys: KvData<'_>, out: &mut [f32]);

    /// Unpacks values of `dim` numbers into strips, `[strip][value][number of the strip]`, the last filled up with zeros.
    /// `place` is the number of the first one in a strip, and how many values strips have.
    fn unpack_values(&self, values: KvData<'_>, dim: usize, out: &mut [f32], place: (usize, usize));

    /// The dot products of `count` keys with a panel of queries, `[number][query]`. `keys` and `scores` have room for the
    /// count rounded up to [`KEY_STEP`]; what comes of the keys beyond it means nothing.
    fn panel_scores(&self, keys: &[f32], count: usize, panel: &[f32], scores: &mut [f32]);

    /// Makes scores (`[key][query]`) weights, and brings what there was before to the same largest scores.
    fn panel_softmax(&self, scores: &mut [f32], running: &mut Running<'_>);

    /// Adds to `mixed` the values (in strips), weighted.
    fn panel_mix(&self, weights: &[f32], values: &[f32], mixed: &mut [f32]);

    /// Multiplies and adds numbers that never leave registers; answers how many multiplications that were. For measuring
    /// what the arithmetic allows.
    fn multiply_adds(&self, rounds: usize) -> usize;
}

/// Keys that kernels may compute beyond the last one.
pub(crate) const KEY_STEP: usize = 24;
/// Scores of a decoded token are padded to this.
pub(crate) const SCORES_STEP: usize = 16;

/// Runs code with stored numbers of whichever type, and where those begin that are read after them.
macro_rules! with_stored {
    ($data:expr, $next:expr, $stored:ident => $run:expr) => {{
        let ahead = Ahead::new($data, $next);
        match $data {
            KvData::F32(data) => {
                let $stored = stored::F32(data.as_ptr(), ahead);
                $run
            }
            KvData::F16(data) => {
                let $stored = stored::F16(data.as_ptr(), ahead);
                $run
            }
            KvData::Q8_0 { quants, scales } => {
                assert_eq!(scales.len() * KV_BLOCK, quants.len(), "scales of whole blocks");
                let (quants, scales) = (quants.as_ptr(), scales.as_ptr());
                let $stored = stored::Q8_0 { quants, scales, ahead };
                $run
            }
        }
    }};
}

/// Implements the kernels of an instruction set: its vectors, and for how many keys and rows sums fit its registers.
macro_rules! kernels {
    ($name:ident, $lanes:ty, $keys:literal, $rows:literal, $chains:literal $(, $features:literal)?) => {
        impl AttentionKernels for $name {
            fn panel(&self) -> usize {
                many::PANEL * <$lanes as Lanes>::COUNT
            }

            fn strip(&self) -> usize {
                many::STRIP * <$lanes as Lanes>::COUNT
            }

            fn scores(&self, keys: KvData<'_>, next: *const u8, q: &[f32], scores: &mut [f32]) {
                $(#[target_feature(enable = $features)])?
                unsafe fn run<S: Stored>(k: S, shape: (usize, usize), q: &[f32], out: &mut [f32]) {
                    // SAFETY: the caller checked the slices.
                    unsafe { few::scores::<$lanes, S>(k, shape, q.as_ptr(), out.as_mut_ptr()) }
                }
                let dim = q.len() / QUERIES;
                assert!(dim * QUERIES == q.len() && dim.is_multiple_of(KV_BLOCK), "queries of {dim}");
                let count = rows_of(keys.len(), dim);
                assert_eq!(scores.len(), (count * QUERIES).next_multiple_of(SCORES_STEP), "scores");
                // SAFETY: `self` exists, so the machine has the instructions; the sizes were just checked.
                with_stored!(keys, next, k => unsafe { run(k, (count, dim), q, scores) });
            }

            fn softmax(&self, scores: &mut [f32]) -> ([f32; QUERIES], [f32; QUERIES]) {
                $(#[target_feature(enable = $features)])?
                unsafe fn run(scores: &mut [f32]) -> ([f32; QUERIES], [f32; QUERIES]) {
                    // SAFETY: the caller checked the length.
                    unsafe { few::softmax::<$lanes>(scores.as_mut_ptr(), scores.len()) }
                }
                assert!(scores.len().is_multiple_of(SCORES_STEP), "{} scores", scores.len());
                // SAFETY: `self` exists, so the machine has the instructions; the length was just checked.
                unsafe { run(scores) }
            }

            fn mix(
                &self,
                weights: &[f32],
                v: KvData<'_>,
                next: *const u8,
                dim: usize,
                out: &mut [f32],
                stride: usize,
            ) {
                $(#[target_feature(enable = $features)])?
                unsafe fn run<S: Stored>(
                    weights: &[f32],
                    v: S,
                    shape: (usize, usize),
                    (out, stride): (&mut [f32], usize),
                ) {
                    // SAFETY: the caller checked the slices.
                    unsafe { few::mix::<$lanes, S>(weights.as_ptr(), v, shape, out.as_mut_ptr(), stride) }
                }
                let count = rows_of(v.len(), dim);
                assert!(dim.is_multiple_of(KV_BLOCK) && dim <= stride, "values of {dim} in {stride}");
                assert!(weights.len() >= count * QUERIES, "weights of {count} values");
                assert!(out.len() >= (QUERIES - 1) * stride + dim, "rows of {dim}");
                // SAFETY: `self` exists, so the machine has the instructions; the sizes were just checked.
                with_stored!(v, next, v => unsafe { run(weights, v, (count, dim), (out, stride)) })
            }

            fn unpack_keys(&self, keys: KvData<'_>, out: &mut [f32]) {
                $(#[target_feature(enable = $features)])?
                unsafe fn run<S: Stored>(keys: S, out: &mut [f32]) {
                    // SAFETY: the caller checked the slices.
                    unsafe { many::unpack_keys::<$lanes, S>(keys, out.len(), out.as_mut_ptr()) }
                }
                assert_eq!(keys.len(), out.len(), "numbers to unpack");
                // SAFETY: `self` exists, so the machine has the instructions; the sizes were just checked.
                with_stored!(keys, keys.start(), k => unsafe { run(k, out) })
            }

            fn unpack_values(
                &self,
                values: KvData<'_>,
                dim: usize,
                out: &mut [f32],
                (first, rows): (usize, usize),
            ) {
                $(#[target_feature(enable = $features)])?
                unsafe fn run<S: Stored>(
                    values: S,
                    shape: (usize, usize),
                    (out, place): (&mut [f32], (usize, usize)),
                ) {
                    // SAFETY: the caller checked the slices.
                    unsafe { many::unpack_values::<$lanes, S>(values, shape, out.as_mut_ptr(), place) }
                }
                let count = rows_of(values.len(), dim);
                assert!(first + count <= rows, "{count} values from {first} of {rows}");
                assert_eq!(out.len(), rows * dim.next_multiple_of(self.strip()), "values in strips");
                // SAFETY: `self` exists, so the machine has the instructions; the sizes were just checked.
                with_stored!(values, values.start(), v => unsafe {
                    run(v, (count, dim), (out, (first, rows)))
                })
            }

            fn panel_scores(&self, keys: &[f32], count: usize, panel: &[f32], scores: &mut [f32]) {
                $(#[target_feature(enable = $features)])?
                unsafe fn run(k: &[f32], shape: (usize, usize), panel: &[f32], out: &mut [f32]) {
                    let (k, panel, out) = (k.as_ptr(), panel.as_ptr(), out.as_mut_ptr());
                    // SAFETY: the caller checked the slices.
                    unsafe { many::scores::<$lanes, $keys>(k, shape, panel, out) }
                }
                let dim = rows_of(panel.len(), self.panel());
                let padded = count.next_multiple_of(KEY_STEP);
                assert!(keys.len() >= padded * dim, "{count} keys of {dim}");
                assert!(scores.len() >= padded * self.panel(), "scores of {count} keys");
                // SAFETY: `self` exists, so the machine has the instructions; the sizes were just checked.
                unsafe { run(keys, (count, dim), panel, scores) }
            }

            fn panel_softmax(&self, scores: &mut [f32], running: &mut Running<'_>) {
                $(#[target_feature(enable = $features)])?
                unsafe fn run(scores: &mut [f32], count: usize, dim: usize, running: &mut Running<'_>) {
                    let mut factor = [0.0; MOST_QUERIES];
                    let sums = [&mut *running.max, &mut *running.sum, &mut factor];
                    // SAFETY: the caller checked the slices; no panel has more queries than there are factors.
                    unsafe {
                        many::softmax::<$lanes>(scores.as_mut_ptr(), count, sums.map(|s| s.as_mut_ptr()));
                        many::rescale::<$lanes>(running.mixed.as_mut_ptr(), dim, factor.as_ptr());
                    }
                }
                let panel = self.panel();
                assert_eq!([running.max.len(), running.sum.len()], [panel; 2], "queries");
                let (count, dim) = (rows_of(scores.len(), panel), running.mixed.len() / panel);
                assert_eq!(running.mixed.len(), panel * dim.next_multiple_of(self.strip()), "rows of {dim}");
                // SAFETY: `self` exists, so the machine has the instructions; the sizes were just checked.
                unsafe { run(scores, count, dim, running) }
            }

            fn panel_mix(&self, weights: &[f32], values: &[f32], mixed: &mut [f32]) {
                $(#[target_feature(enable = $features)])?
                unsafe fn run(w: &[f32], v: &[f32], shape: (usize, usize), out: &mut [f32]) {
                    let (w, v, out) = (w.as_ptr(), v.as_ptr(), out.as_mut_ptr());
                    // SAFETY: the caller checked the slices; rows divide panels.
                    unsafe { many::mix::<$lanes, $rows>(w, v, shape, out) }
                }
                const { assert!((many::PANEL * <$lanes as Lanes>::COUNT).is_multiple_of($rows)) };
                const { assert!(KEY_STEP.is_multiple_of($keys)) };
                let panel = self.panel();
                let (count, dim) = (rows_of(weights.len(), panel), mixed.len() / panel);
                assert_eq!(mixed.len(), panel * dim.next_multiple_of(self.strip()), "rows of {dim}");
                assert_eq!(values.len(), count * dim, "values of {count} weights");
                // SAFETY: `self` exists, so the machine has the instructions; the sizes were just checked.
                unsafe { run(weights, values, (count, dim), mixed) }
            }

            fn multiply_adds(&self, rounds: usize) -> usize {
                $(#[target_feature(enable = $features)])?
                unsafe fn run(rounds: usize) -> f32 {
                    let mut last = [0.0; 16];
                    // SAFETY: the caller has the instructions; no vector is longer than 16 numbers.
                    unsafe {
                        let factor = <$lanes>::splat(std::hint::black_box(0.5));
                        let mut sums = [factor; $chains];
                        for _ in 0..rounds {
                            for sum in &mut sums {
                                *sum = sum.mul_add(factor, factor);
                            }
                        }
                        let [mut total, rest @ ..] = sums;
                        for sum in rest {
                            total = total.add(sum);
                        }
                        total.store(last.as_mut_ptr());
                    }
                    last[0]
                }
                // SAFETY: `self` exists, so the machine has the instructions.
                std::hint::black_box(unsafe { run(rounds) });
                rounds * $chains * <$lanes as Lanes>::COUNT
            }
        }
    };
}

/// Queries of the largest panel.
const MOST_QUERIES: usize = 16 * many::PANEL;

/// How many rows `len` numbers are.
fn rows_of(len: usize, dim: usize) -> usize {
    let rows = len.checked_div(dim).unwrap_or(0);
    assert_eq!(rows * dim, len, "rows of {dim}");
    rows
}

use super::lanes::{Lanes, Plain};
use stored::{Ahead, Stored};

/// The kernels in plain Rust.
pub(super) struct Generic;

kernels!(Generic, Plain, 1, 2, 4);

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{__m256, __m512};

    use super::*;

    /// The kernels for machines with AVX2, FMA and F16C. A value is the proof that this machine has them.
    pub(in crate::isa) struct Avx2 {
        /// Keeps others from making one.
        _checked: (),
    }

    impl Avx2 {
        /// The kernels, if this machine can run them.
        pub(in crate::isa) fn new() -> Option<Self> {
            let available = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            available.then_some(Self { _checked: () })
        }
    }

    // 9 and 12 of 16 registers for sums: with 12 of both, compilers run out of them where three vectors meet.
    kernels!(Avx2, __m256, 3, 6, 12, "avx2,fma,f16c");

    /// The kernels for machines with AVX-512. A value is the proof that this machine has it.
    pub(in crate::isa) struct Avx512 {
        /// Keeps others from making one.
        _avx2: Avx2,
    }

    impl Avx512 {
        /// The kernels, if this machine can run them.
        pub(in crate::isa) fn new() -> Option<Self> {
            let avx2 = Avx2::new()?;
            is_x86_feature_detected!("avx512f").then_some(Self { _avx2: avx2 })
        }
    }

    // 24 of 32 registers for sums.
    kernels!(Avx512, __m512, 8, 12, 12, "avx2,fma,f16c,avx512f");
}
