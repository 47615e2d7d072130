//! Layer normalisation.

use crate::cpu::Cpu;
use crate::disjoint::Disjoint;

/// Tokens handed to a thread at a time.
const CHUNK: usize = 8;

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` for every token, with the biased variance.
///
/// `x` and `out` are `[token][width]`, `weight` and `bias` `[width]`.
///
/// # Panics
/// When the slices do not fit together.
#[allow(unsafe_code)]
pub fn layer_norm(cpu: &Cpu, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let tokens = super::tokens("layer norm input", x.len(), width);
    assert_eq!(bias.len(), width, "layer norm bias");
    assert_eq!(out.len(), x.len(), "layer norm output");
    let out = Disjoint::new(out);
    cpu.team().for_each_chunk(tokens, CHUNK, &|chunk| {
        for token in chunk {
            let x = &x[token * width..][..width];
            // SAFETY: every token is in one chunk, so its row is written once, by one thread.
            let out = unsafe { out.part(token * width, width) };
            cpu.kernels().layer_norm(x, weight, bias, eps, out);
        }
    });
}
