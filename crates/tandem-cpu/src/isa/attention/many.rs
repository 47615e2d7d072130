//! Many queries over the same keys: prefill. Keys and values are unpacked once and used by hundreds of queries.
//!
//! Queries come in panels of [`PANEL`] vectors, `[number][query]`: a vector is one number of as many queries. Scores are
//! `[key][query]` then, and softmax has a query in every lane: nothing is ever added up across lanes.
//!
//! Both products are the same loop: single numbers of one side, in every lane, times vectors of the other, with all
//! sums in registers. Sides are padded to whole registers' worth where they are made, so that the loops have no rest.

use super::super::lanes::{Lanes, load_all, store_all};
use super::stored::Stored;

/// Vectors of a panel of queries.
pub(super) const PANEL: usize = 3;
/// Vectors of a strip of values.
pub(super) const STRIP: usize = 2;

/// Unpacks keys to f32 as they lie.
///
/// # Safety
/// The machine must have the instructions; there are `count` numbers, and room for as many.
#[inline(always)]
pub(super) unsafe fn unpack_keys<L: Lanes, S: Stored>(keys: S, count: usize, out: *mut f32) {
    let whole = count / L::COUNT * L::COUNT;
    // SAFETY: the caller's promise.
    unsafe {
        for at in (0..whole).step_by(L::COUNT) {
            keys.load::<L>(at, keys.scale::<L>(at)).store(out.add(at));
        }
        for at in whole..count {
            *out.add(at) = keys.get(at);
        }
    }
}

/// Unpacks values into strips, `[strip][value][number of the strip]`; the last strip is filled up with zeros. Strips have
/// `rows` values, of which these are the ones from `first` on.
///
/// # Safety
/// The machine must have the instructions; there are `count * dim` numbers, and room for `rows` times whole strips, with
/// `first + count` at most `rows`.
#[inline(always)]
pub(super) unsafe fn unpack_values<L: Lanes, S: Stored>(
    values: S,
    (count, dim): (usize, usize),
    out: *mut f32,
    (first, rows): (usize, usize),
) {
    let strip = STRIP * L::COUNT;
    let whole = dim / strip * strip;
    // SAFETY: the caller's promise.
    unsafe {
        for row in 0..count {
            for at in (0..whole).step_by(strip) {
                for n in 0..STRIP {
                    let at = at + n * L::COUNT;
                    let to = at / strip * strip * rows + (first + row) * strip + at % strip;
                    let from = row * dim + at;
                    values.load::<L>(from, values.scale::<L>(from)).store(out.add(to));
                }
            }
            if whole < dim {
                let to = out.add(whole * rows + (first + row) * strip);
                for n in 0..strip {
                    *to.add(n) =
                        if whole + n < dim { values.get(row * dim + whole + n) } else { 0.0 };
                }
            }
        }
    }
}

/// The dot products of keys with a panel of queries, for `KEYS` keys at a time.
///
/// # Safety
/// The machine must have the instructions; there are `count` keys of `dim` numbers and room for as many rows of scores,
/// both with the count rounded up to `KEYS`, and `dim` rows of the panel.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, const KEYS: usize>(
    keys: *const f32,
    (count, dim): (usize, usize),
    panel: *const f32,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for key in (0..count).step_by(KEYS) {
            let mut sums = [[L::splat(0.0); PANEL]; KEYS];
            let keys = keys.add(key * dim);
            for at in 0..dim {
                let q: [L; PANEL] = load_all(panel.add(at * PANEL * L::COUNT));
                for (m, sums) in sums.iter_mut().enumerate() {
                    let k = L::splat(*keys.add(m * dim + at));
                    for (sum, q) in sums.iter_mut().zip(q) {
                        *sum = q.mul_add(k, *sum);
                    }
                }
            }
            for (m, sums) in sums.into_iter().enumerate() {
                store_all(sums, out.add((key + m) * PANEL * L::COUNT));
            }
        }
    }
}

/// Makes `count` rows of scores weights relative to each query's largest so far, `max`; adds them to `sum`; and leaves in
/// `factor` what all that was relative to the former largest must be multiplied with. Answers whether any of that is
/// not 1.
///
/// # Safety
/// The machine must have the instructions; there are `count` rows of scores, and a panel's row of each of the others.
#[inline(always)]
pub(super) unsafe fn softmax<L: Lanes>(
    scores: *mut f32,
    count: usize,
    [max, sum, factor]: [*mut f32; 3],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for n in 0..PANEL {
            let at = n * L::COUNT;
            let scores = scores.add(at);
            let step = PANEL * L::COUNT;
            let former = L::load(max.add(at));
            let mut largest = former;
            for key in 0..count {
                largest = L::load(scores.add(key * step)).max(largest);
            }
            let change = former.sub(largest).exp();
            let mut total = L::load(sum.add(at)).mul(change);
            for key in 0..count {
                let weight = L::load(scores.add(key * step)).sub(largest).exp();
                weight.store(scores.add(key * step));
                total = total.add(weight);
            }
            largest.store(max.add(at));
            total.store(sum.add(at));
            change.store(factor.add(at));
        }
    }
}

/// Multiplies the rows of a panel (`dim` numbers, whole strips) with their factors.
///
/// # Safety
/// The machine must have the instructions; there are a panel's factors, and as many rows.
#[inline(always)]
pub(super) unsafe fn rescale<L: Lanes>(rows: *mut f32, dim: usize, factor: *const f32) {
    // SAFETY: the caller's promise.
    unsafe {
        for row in 0..PANEL * L::COUNT {
            let factor = *factor.add(row);
            // Mostly no larger score has come up.
            if factor != 1.0 {
                for at in (row * dim..(row + 1) * dim).step_by(L::COUNT) {
                    L::load(rows.add(at)).mul(L::splat(factor)).store(rows.add(at));
                }
            }
        }
    }
}

/// Adds to the rows of a panel of queries (`dim` numbers, whole strips) the values, weighted, for `ROWS` queries at a
/// time.
///
/// # Safety
/// The machine must have the instructions; there are `count` rows of weights, `count` values in strips, and the panel's
/// rows. `ROWS` divides a panel.
#[inline(always)]
pub(super) unsafe fn mix<L: Lanes, const ROWS: usize>(
    weights: *const f32,
    values: *const f32,
    (count, dim): (usize, usize),
    out: *mut f32,
) {
    let (panel, strip) = (PANEL * L::COUNT, STRIP * L::COUNT);
    // SAFETY: the caller's promise.
    unsafe {
        for at in (0..dim).step_by(strip) {
            let values = values.add(at * count);
            for row in (0..panel).step_by(ROWS) {
                let (weights, out) = (weights.add(row), out.add(row * dim + at));
                let mut sums = [[L::splat(0.0); STRIP]; ROWS];
                for (m, sums) in sums.iter_mut().enumerate() {
                    *sums = load_all(out.add(m * dim));
                }
                for key in 0..count {
                    let v: [L; STRIP] = load_all(values.add(key * strip));
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let weight = L::splat(*weights.add(key * panel + m));
                        for (sum, v) in sums.iter_mut().zip(v) {
                            *sum = v.mul_add(weight, *sum);
                        }
                    }
                }
                for (m, sums) in sums.into_iter().enumerate() {
                    store_all(sums, out.add(m * dim));
                }
            }
        }
    }
}
