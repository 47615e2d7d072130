//! A few queries over many keys: decode. Keys and values come from memory and are used [`QUERIES`] times, in registers.
//!
//! Scores are `[key][query]`, so that softmax runs over all queries at once and the weights of a key lie together.

use tandem_memory::KV_BLOCK;

use super::super::lanes::{Lanes, SUMS, load_all, store_all};
use super::stored::Stored;

/// Queries that share a pass over the keys: as many as there are registers for.
pub(crate) const QUERIES: usize = 4;

/// Keys whose dot products are computed together.
const KEYS: usize = SUMS / QUERIES;
/// Values that are added up before the sums go back to memory. At a head of 128 in f16 they are 4 KiB, which the
/// first-level cache holds while all columns are taken.
const VALUES: usize = 16;
/// Vectors of a row that are taken together.
const STRIP: usize = 2;

/// The dot products of all `count` keys with the queries (`[query][dim]`).
///
/// # Safety
/// The machine must have the instructions; `dim` is a multiple of [`KV_BLOCK`]; there are `count * dim` keys, `QUERIES *
/// dim` queries, and room for the scores of `count` keys, rounded up to a multiple of `KEYS`.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, S: Stored>(
    keys: S,
    (count, dim): (usize, usize),
    q: *const f32,
    out: *mut f32,
) {
    for key in (0..count).step_by(KEYS) {
        // SAFETY: the caller's promise. Where there is no second key the first is taken twice.
        unsafe {
            let sums = dots::<L, S>(keys, [key, (key + 1).min(count - 1)], dim, q);
            out.add(key * QUERIES).cast::<[f32; SUMS]>().write(sums);
        }
    }
}

/// The dot products of some keys with the queries, `[key][query]`.
///
/// # Safety
/// As [`scores`], and the keys must be there.
#[inline(always)]
unsafe fn dots<L: Lanes, S: Stored>(
    keys: S,
    rows: [usize; KEYS],
    dim: usize,
    q: *const f32,
) -> [f32; SUMS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [L::splat(0.0); SUMS];
        for block in (0..dim).step_by(KV_BLOCK) {
            let starts = [rows[0] * dim + block, rows[1] * dim + block];
            let scales = [keys.scale::<L>(starts[0]), keys.scale::<L>(starts[1])];
            // In the order of memory, which is not quite the one they are used in: processors follow that best.
            for key in 0..KEYS {
                keys.prefetch(rows[0] * dim + KEYS * block + key * KV_BLOCK);
            }
            for at in (0..KV_BLOCK).step_by(L::COUNT) {
                let k: [L; KEYS] =
                    [keys.load(starts[0] + at, scales[0]), keys.load(starts[1] + at, scales[1])];
                for query in 0..QUERIES {
                    let q = L::load(q.add(query * dim + block + at));
                    for key in 0..KEYS {
                        let sum = &mut sums[key * QUERIES + query];
                        *sum = q.mul_add(k[key], *sum);
                    }
                }
            }
        }
        L::sums(sums)
    }
}

/// Makes scores weights, relative to each query's largest: answers the largest ones, and the sums of the weights.
///
/// # Safety
/// The machine must have the instructions; there are `count` numbers, whole vectors.
#[inline(always)]
pub(super) unsafe fn softmax<L: Lanes>(
    scores: *mut f32,
    count: usize,
) -> ([f32; QUERIES], [f32; QUERIES]) {
    // Lane `n` of a vector belongs to query `n % QUERIES`.
    let mut lanes = [0.0; 16];
    // SAFETY: the caller's promise; no vector is longer than 16 numbers.
    unsafe {
        let mut max = L::splat(f32::MIN);
        for at in (0..count).step_by(L::COUNT) {
            max = L::load(scores.add(at)).max(max);
        }
        max.store(lanes.as_mut_ptr());
        let max: [f32; QUERIES] = fold::<L>(&lanes, f32::max);
        for (n, lane) in lanes.iter_mut().enumerate() {
            *lane = max[n % QUERIES];
        }
        let max_of_lane = L::load(lanes.as_ptr());
        let mut sum = L::splat(0.0);
        for at in (0..count).step_by(L::COUNT) {
            let weight = L::load(scores.add(at)).sub(max_of_lane).exp();
            weight.store(scores.add(at));
            sum = sum.add(weight);
        }
        sum.store(lanes.as_mut_ptr());
        (max, fold::<L>(&lanes, |a, b| a + b))
    }
}

/// Brings the lanes of a vector together, query by query.
#[inline(always)]
fn fold<L: Lanes>(lanes: &[f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; QUERIES] {
    let mut out = [0.0; QUERIES];
    for (query, out) in out.iter_mut().enumerate() {
        *out = lanes[query];
        for at in (query + QUERIES..L::COUNT).step_by(QUERIES) {
            *out = f(*out, lanes[at]);
        }
    }
    out
}

/// Adds to `out` (`[query][stride]`) all `count` values, weighted.
///
/// # Safety
/// As [`scores`], with weights in the place of scores; and there must be room for [`QUERIES`] rows of `dim` numbers,
/// `stride` apart.
#[inline(always)]
pub(super) unsafe fn mix<L: Lanes, S: Stored>(
    weights: *const f32,
    values: S,
    (count, dim): (usize, usize),
    out: *mut f32,
    stride: usize,
) {
    for start in (0..count).step_by(VALUES) {
        let rows = start..(start + VALUES).min(count);
        for at in (0..dim).step_by(STRIP * L::COUNT) {
            // SAFETY: the caller's promise; blocks are of whole strips.
            unsafe {
                let mut sums = [[L::splat(0.0); STRIP]; QUERIES];
                for (query, sums) in sums.iter_mut().enumerate() {
                    *sums = load_all(out.add(query * stride + at));
                }
                for row in rows.clone() {
                    // In the order of memory again.
                    let before = at * rows.len() + (row - start) * STRIP * L::COUNT;
                    values.prefetch(start * dim + before);
                    let scale = values.scale::<L>(row * dim + at);
                    let mut v = [L::splat(0.0); STRIP];
                    for (n, v) in v.iter_mut().enumerate() {
                        *v = values.load(row * dim + at + n * L::COUNT, scale);
                    }
                    for (query, sums) in sums.iter_mut().enumerate() {
                        let weight = L::splat(*weights.add(row * QUERIES + query));
                        for (sum, v) in sums.iter_mut().zip(v) {
                            *sum = v.mul_add(weight, *sum);
                        }
                    }
                }
                for (query, sums) in sums.into_iter().enumerate() {
                    store_all(sums, out.add(query * stride + at));
                }
            }
        }
    }
}
