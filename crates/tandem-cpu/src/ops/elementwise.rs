//! Operations on one number at a time, and the choice of the largest.

use crate::cpu::Cpu;
use crate::disjoint::Disjoint;

/// Numbers handed to a thread at a time: a few microseconds of work.
const CHUNK: usize = 1 << 13;

/// `gate = silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`.
///
/// # Panics
/// When the slices differ in length.
#[allow(unsafe_code)]
pub fn silu_mul(cpu: &Cpu, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "numbers of gate and up");
    let gate = Disjoint::new(gate);
    cpu.team().for_each_chunk(up.len(), CHUNK, &|chunk| {
        // SAFETY: chunks do not overlap.
        let gate = unsafe { gate.part(chunk.start, chunk.len()) };
        cpu.kernels().silu_mul(gate, &up[chunk]);
    });
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
}
