//! Operations on rows: normalisation, quantization.

use tandem_gpu::Gpu;
use tandem_gpu::ops::{self, Precision, QuantizedVec};
use tandem_testkit::Rng;
use tandem_testkit::oracle::{self, Expected, assert_close};

use super::{numbers, on_every_gpu};

#[test]
fn layer_norm_is_exact_to_rounding() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(21);
        for width in [1, 37, 256, 4096] {
            for tokens in [1, 3] {
                // With the mean far off a single pass would lose every digit.
                for (offset, scale) in
                    [(0.0, 1.0), (1e4, 1.0), (-3.0, 1e-4), (0.0, 1e15), (7.5, 0.0)]
                {
                    let x: Vec<f32> = (numbers(&mut rng, tokens * width).iter())
                        .map(|x| offset + scale * x)
                        .collect();
                    let (weight, bias) = (numbers(&mut rng, width), numbers(&mut rng, width));
                    let eps = 1e-5;
                    let out = run_norm(gpu, &x, &weight, &bias, eps);
                    // A work-item's share, eight additions across the group, division and square root to 3 units.
                    let roundings = (width.div_ceil(256) + 8 + 24) as f64;
                    let expected = oracle::layer_norm(&x, &weight, &bias, eps, roundings);
                    let what = format!("{what}: {tokens} x {width}, {offset} +- {scale}");
                    assert_close(&what, &out, &expected);
                }
            }
        }
    });
}

fn run_norm(gpu: &Gpu, x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let [x_vec, weight, bias] = [x, weight, bias].map(|v| gpu.upload(v).unwrap());
    let mut out = gpu.upload(&vec![f32::NAN; x.len()]).unwrap();
    gpu.scope(|scope| {
        let (x, weight, bias) = (scope.vec(&x_vec)?, scope.vec(&weight)?, scope.vec(&bias)?);
        ops::layer_norm(scope, &x, &weight, &bias, eps, &scope.vec_mut(&mut out)?)
    })
    .unwrap();
    gpu.read(&out).unwrap()
}

#[test]
fn silu_over_the_whole_range() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(22);
        for count in [1, 7, 448, 20_000] {
            let scales = [1e-20, 1e-3, 1.0, 10.0, 80.0, 1e4, 1e30];
            let gate: Vec<f32> = (0..count).map(|i| rng.normal() * scales[i % 7]).collect();
            let up = numbers(&mut rng, count);
            assert_close(
                &format!("{what}: {count}"),
                &silu(gpu, &gate, &up),
                &exact_silu(&gate, &up),
            );
        }
        let gate = [f32::NAN, f32::INFINITY, 0.0, -0.0, 1.0, 1.0];
        let out = silu(gpu, &gate, &[1.0, 1.0, 1.0, 1.0, f32::NAN, 0.0]);
        assert!(out[0].is_nan() && out[4].is_nan(), "{what}: {out:?}");
        assert_eq!([out[1], out[2], out[3], out[5]], [f32::INFINITY, 0.0, 0.0, 0.0], "{what}");
    });
}

/// OpenCL asks 3 units of exp and 2.5 of a quotient, where the oracle allows for 2 and half a one.
fn exact_silu(gate: &[f32], up: &[f32]) -> Vec<Expected> {
    let exact = oracle::silu_mul(gate, up).into_iter();
    exact.map(|(x, tolerance)| (x, tolerance + 6.0 * oracle::U * x.abs())).collect()
}

fn silu(gpu: &Gpu, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let (mut out, up) = (gpu.upload(gate).unwrap(), gpu.upload(up).unwrap());
    gpu.scope(|scope| ops::silu_mul(scope, &scope.vec_mut(&mut out)?, &scope.vec(&up)?)).unwrap();
    gpu.read(&out).unwrap()
}

#[test]
fn argmax_takes_the_lowest_of_equals_and_notices_nan() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(23);
        for width in [1, 2, 255, 256, 257, 3000] {
            let mut x = numbers(&mut rng, 8 * width);
            let mut expected: Vec<u32> = Vec::new();
            for (row, x) in x.chunks_exact_mut(width).enumerate() {
                let (a, b) = (rng.below(width), rng.below(width));
                match row {
                    0 => x.fill(f32::NEG_INFINITY),
                    1 => x.fill(-0.0),
                    2..5 => (x[a], x[b]) = (2.0, 2.0),
                    5 => (x[a], x[b]) = (f32::INFINITY, f32::INFINITY),
                    _ => (x[a], x[b]) = (f32::NAN, f32::NAN),
                }
                expected.push(if row < 2 { 0 } else { a.min(b) as u32 });
            }
            let (input, mut out) = (gpu.upload(&x).unwrap(), gpu.zeros(8).unwrap());
            gpu.scope(|scope| {
                ops::argmax(scope, &scope.vec(&input)?, width, &scope.vec_mut(&mut out)?)
            })
            .unwrap();
            assert_eq!(gpu.read(&out).unwrap(), expected, "{what}: {width}");
        }
    });
}

/// One kernel does what two do, one after the other: numbers as good, and 8 bits that stand for them.
#[test]
fn norms_and_silu_are_quantized_on_the_way() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(24);
        for width in [32, 448, 4096] {
            for tokens in [1, 3] {
                let what = format!("{what}: {tokens} x {width}");
                let x: Vec<f32> =
                    numbers(&mut rng, tokens * width).iter().map(|x| 3.0 + 2.0 * x).collect();
                let (weight, bias) = (numbers(&mut rng, width), numbers(&mut rng, width));
                let roundings = (width.div_ceil(256) + 8 + 24) as f64;
                let expected = oracle::layer_norm(&x, &weight, &bias, 1e-5, roundings);
                let (out, seen) = norm_quantized(gpu, &x, &weight, &bias, 1e-5);
                assert_close(&what, &out, &expected);
                check_quantized(&what, &out, &seen, 127.0);

                let (gate, up) = (numbers(&mut rng, 2 * x.len()), numbers(&mut rng, 2 * x.len()));
                for (precision, steps) in
                    [(Precision::Bits8, 127.0), (Precision::Bits16, 254.0 * 127.0)]
                {
                    let (out, seen) = silu_quantized(gpu, &gate, &up, width, precision);
                    // Not the unfused kernel's numbers to the last bit: exp of four numbers may round otherwise.
                    assert_close(&what, &out, &exact_silu(&gate, &up));
                    check_quantized(&what, &out, &seen, steps);
                }
            }
        }
    });
}

/// 8 or 16 bits are off by half a step at most.
fn check_quantized(what: &str, x: &[f32], seen: &[f32], steps: f32) {
    assert_eq!(x.len(), seen.len(), "{what}");
    for (x, seen) in x.chunks_exact(32).zip(seen.chunks_exact(32)) {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (x, seen) in x.iter().zip(seen) {
            assert!((x - seen).abs() <= largest / steps * 0.501, "{what}: {x} became {seen}");
        }
    }
}

fn norm_quantized(
    gpu: &Gpu,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) -> (Vec<f32>, Vec<f32>) {
    let (width, tokens) = (weight.len(), x.len() / weight.len());
    let [x_vec, weight, bias] = [x, weight, bias].map(|v| gpu.upload(v).unwrap());
    let mut out = gpu.upload(&vec![f32::NAN; x.len()]).unwrap();
    let mut room = QuantizedVec::new(gpu, x.len(), Precision::Bits8).unwrap();
    gpu.scope(|scope| {
        let (x, weight, bias) = (scope.vec(&x_vec)?, scope.vec(&weight)?, scope.vec(&bias)?);
        let to = (&scope.vec_mut(&mut out)?, &room.lend(scope)?);
        let quantized = ops::layer_norm_quantized(scope, &x, &weight, &bias, eps, to)?;
        assert_eq!((quantized.tokens(), quantized.cols()), (tokens, width));
        Ok(())
    })
    .unwrap();
    let seen = room.dequantize(gpu, tokens, width, Precision::Bits8).unwrap();
    (gpu.read(&out).unwrap(), seen)
}

fn silu_quantized(
    gpu: &Gpu,
    gate: &[f32],
    up: &[f32],
    cols: usize,
    precision: Precision,
) -> (Vec<f32>, Vec<f32>) {
    let (mut out, up) = (gpu.upload(gate).unwrap(), gpu.upload(up).unwrap());
    let mut room = QuantizedVec::new(gpu, gate.len(), precision).unwrap();
    gpu.scope(|scope| {
        let both = (&scope.vec_mut(&mut out)?, &scope.vec(&up)?);
        ops::silu_mul_quantized(scope, both, cols, precision, &room.lend(scope)?).map(drop)
    })
    .unwrap();
    let seen = room.dequantize(gpu, gate.len() / cols, cols, precision).unwrap();
    (gpu.read(&out).unwrap(), seen)
}
