//! Operations on one number at a time, and the choice of the largest.

use super::activations::prepare_rows;
use super::{Input, Precision, QuantizedActivations, Weights};
use crate::cpu::Cpu;

/// `gate = silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`, as the input of the products with `weights`: see
/// [`Input::new`]. `gate` and `up` are `[token][width]`.
///
/// # Panics
/// When the slices differ in length, or are no whole number of rows.
pub fn silu_mul<'a>(
    cpu: &Cpu,
    gate: &'a mut [f32],
    up: &[f32],
    width: usize,
    (weights, precision): (&[Weights<'_>], Precision),
    buffer: &'a mut QuantizedActivations,
) -> Input<'a> {
    assert_eq!(gate.len(), up.len(), "numbers of gate and up");
    let row = |token: usize, gate: &mut [f32]| {
        cpu.kernels().silu_mul(gate, &up[token * width..][..width]);
    };
    Input::prepared(cpu, gate, width, (weights, precision), buffer, &row)
}

/// `acc += x`.
///
/// # Panics
/// When the slices differ in length.
pub fn add(acc: &mut [f32], x: &[f32]) {
    assert_eq!(acc.len(), x.len(), "numbers of the sum and its term");
    for (acc, x) in acc.iter_mut().zip(x) {
        *acc += x;
    }
}

/// `acc += weight * x`.
///
/// # Panics
/// When the slices differ in length.
pub fn add_scaled(acc: &mut [f32], x: &[f32], weight: f32) {
    assert_eq!(acc.len(), x.len(), "numbers of the sum and its term");
    for (acc, x) in acc.iter_mut().zip(x) {
        *acc += weight * x;
    }
}

/// `x[token] += sum(weights[r] * rows[r])` over the rows `r` that belong to a token: `x` and `rows` are `[..][width]`.
///
/// # Panics
/// When the slices do not fit together, or there is no such row.
pub fn add_weighted_rows<const N: usize>(
    cpu: &Cpu,
    x: &mut [f32],
    rows: &[f32],
    width: usize,
    rows_of: &[[u32; N]],
    weights: &[f32],
) {
    assert_eq!(x.len(), rows_of.len() * width, "tokens that rows are added to");
    prepare_rows(cpu, x, width, &|token, x| {
        for row in rows_of[token].map(|row| row as usize) {
            add_scaled(x, &rows[row * width..][..width], weights[row]);
        }
    });
}

/// Puts rows together whose first and last numbers were computed apart: `out[row] = first[row] last[row]`, or that is
/// added to `out[row]`. All three are `[row][..]`, `out` with `width` numbers a row.
///
/// # Panics
/// When the slices do not fit together.
pub fn join_rows(
    cpu: &Cpu,
    (first, last): (&[f32], &[f32]),
    out: &mut [f32],
    width: usize,
    accumulate: bool,
) {
    let rows = super::tokens("rows to put together", out.len(), width);
    let split = super::tokens("their first numbers", first.len(), rows.max(1));
    assert_eq!(first.len() + last.len(), out.len(), "numbers to put together");
    prepare_rows(cpu, out, width, &|row, out| {
        let (start, end) = out.split_at_mut(split);
        let rest = width - split;
        for (out, part) in
            [(start, &first[row * split..][..split]), (end, &last[row * rest..][..rest])]
        {
            if accumulate { add(out, part) } else { out.copy_from_slice(part) }
        }
    });
}

/// Index of the largest number; the lowest index where several are. NaN counts as the largest, as in PyTorch,
/// so that it is noticed.
///
/// # Panics
/// When there are no numbers.
pub fn argmax(numbers: &[f32]) -> usize {
    assert!(!numbers.is_empty(), "argmax of nothing");
    let mut best = 0;
    for (index, &number) in numbers.iter().enumerate() {
        if numbers[best].is_nan() {
            break;
        }
        if number > numbers[best] || number.is_nan() {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_lowest_of_equals() {
        assert_eq!(argmax(&[-1.0]), 0);
        assert_eq!(argmax(&[1.0, 3.0, 2.0, 3.0]), 1);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 4]), 0);
        assert_eq!(argmax(&[-0.0, 0.0]), 0);
        assert_eq!(argmax(&[1.0, f32::INFINITY, f32::NAN, f32::NAN]), 2);
    }

    #[test]
    fn sums() {
        let mut acc = [1.0, 2.0];
        add(&mut acc, &[0.5, -2.0]);
        assert_eq!(acc, [1.5, 0.0]);
        add_scaled(&mut acc, &[1.0, 2.0], -0.5);
        assert_eq!(acc, [1.0, -1.0]);
    }

    #[test]
    fn parts_of_rows_are_put_together() {
        let cpu = Cpu::new(crate::ThreadTeam::new(2).unwrap());
        let mut out = [9.0; 6];
        join_rows(&cpu, (&[1.0, 4.0], &[2.0, 3.0, 5.0, 6.0]), &mut out, 3, false);
        assert_eq!(out, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        join_rows(&cpu, (&[1.0, 1.0, 2.0, 2.0], &[0.5, 0.25]), &mut out, 3, true);
        assert_eq!(out, [2.0, 3.0, 3.5, 6.0, 7.0, 6.25]);
        join_rows(&cpu, (&[], &[1.0, 2.0]), &mut out[..2], 1, false);
        assert_eq!(out[..2], [1.0, 2.0]);
    }

    #[test]
    fn weighted_rows_are_added_to_their_tokens() {
        let cpu = Cpu::new(crate::ThreadTeam::new(2).unwrap());
        let mut x = [1.0, 2.0, 3.0, 4.0];
        let rows = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        let weights = [0.5, 1.0, -1.0, 2.0];
        add_weighted_rows(&cpu, &mut x, &rows, 2, &[[0, 3], [1, 2]], &weights);
        assert_eq!(x, [1.0 + 0.5 + 8.0, 2.0 + 5.0 + 80.0, 3.0 + 2.0 - 3.0, 4.0 + 20.0 - 30.0]);
    }
}
