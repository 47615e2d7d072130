//! Products of packed weights and activations in 8 bits.
//!
//! The oracle multiplies what the weights and the 8-bit activations stand for, in f64. Dot products of quants are
//! whole numbers and must be exact; what is allowed are the roundings of f32 afterwards: two for each block's
//! product with its scales, one for each block that is added, and those of 16 bits: in `dequantize`, which the oracle
//! starts from, and where both halves are added.

use tandem_formats::blocks;
use tandem_gpu::ops::{self, Dense, Output, PackedWeights, Precision, QuantizedVec};
use tandem_gpu::{Gpu, GpuVec};
use tandem_memory::{PackedLayout, PackedType};
use tandem_testkit::oracle::{assert_close, products};
use tandem_testkit::{Rng, packed as inputs};

use super::{numbers, on_every_gpu};

const KINDS: [PackedType; 2] = [PackedType::Q4_0, PackedType::Q8_0];
const PRECISIONS: [Precision; 2] = [Precision::Bits8, Precision::Bits16];

/// Weights as the oracle sees them, and packed.
pub(crate) struct Packed {
    layout: PackedLayout,
    pub(crate) bytes: Vec<u8>,
    pub(crate) plain: Vec<f32>,
}

impl Packed {
    /// Every quant occurs, and scales are sane.
    pub(crate) fn random(rng: &mut Rng, kind: PackedType, rows: usize, cols: usize) -> Self {
        let blocks = rows * cols / kind.dtype().block_len();
        Self::of(kind, rows, cols, &inputs::random_blocks(rng, kind.dtype().block_bytes(), blocks))
    }

    fn of(kind: PackedType, rows: usize, cols: usize, raw: &[u8]) -> Self {
        let layout = PackedLayout::new(kind, rows, cols).unwrap();
        let mut bytes = vec![0; layout.n_bytes()];
        let (quants, scales) = bytes.split_at_mut(layout.quant_bytes());
        layout.pack_tiles(raw, quants, scales);
        let mut plain = vec![0.0; rows * cols];
        blocks::dequantize(kind.dtype(), raw, &mut plain);
        Self { layout, bytes, plain }
    }

    /// Holds a device against the oracle.
    fn check(&self, what: &str, gpu: &Gpu, bias: Option<&[f32]>, x: &[f32], output: Output) {
        let (rows, cols, kind) = (self.layout.rows(), self.layout.cols(), self.layout.kind());
        let tokens = x.len() / cols;
        let weights = gpu.upload(&self.bytes).unwrap();
        for precision in PRECISIONS {
            // Whatever was there must be overwritten, or added to.
            let before = if output == Output::Add { 0.5 } else { f32::NAN };
            let start = vec![before; tokens * rows];
            let (out, seen) =
                product(gpu, self.layout, &weights, bias, x, precision, output, &start);
            let roundings = (cols / 32 + 6) as f64;
            let mut expected = products(&self.plain, bias, &seen, cols, roundings, 65504.0);
            if output == Output::Add {
                for (result, tolerance) in &mut expected {
                    *result += 0.5;
                    *tolerance += tandem_testkit::oracle::U * (result.abs() + 0.5);
                }
            }
            let what = format!("{what}: {kind:?} {rows} x {cols}, {tokens} tokens, {precision:?}");
            assert_close(&what, &out, &expected);
        }
    }
}

/// The product, and the activations that went into it.
#[allow(clippy::too_many_arguments)]
fn product(
    gpu: &Gpu,
    layout: PackedLayout,
    weights: &GpuVec<u8>,
    bias: Option<&[f32]>,
    x: &[f32],
    precision: Precision,
    output: Output,
    start: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let (cols, tokens) = (layout.cols(), x.len() / layout.cols());
    let mut room = QuantizedVec::new(gpu, x.len(), precision).unwrap();
    let bias = bias.map(|bias| gpu.upload(bias).unwrap());
    let x = gpu.upload(x).unwrap();
    let mut out = gpu.upload(start).unwrap();
    gpu.scope(|scope| {
        let quantized = room.fill(scope, &scope.vec(&x)?, cols, precision)?;
        let weights = PackedWeights::new(layout, scope.vec(weights)?);
        let bias = bias.as_ref().map(|bias| scope.vec(bias)).transpose()?;
        let out = scope.vec_mut(&mut out)?;
        ops::matmul(scope, &weights, bias.as_ref(), &quantized, output, &out)
    })
    .unwrap();
    let seen = room.dequantize(gpu, tokens, cols, precision).unwrap();
    (gpu.read(&out).unwrap(), seen)
}

#[test]
fn every_size_and_number_of_tokens() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(31);
        for kind in KINDS {
            for (rows, cols) in
                [(1, 32), (15, 32), (16, 448), (17, 32), (40, 448), (448, 32), (33, 4096)]
            {
                let weights = Packed::random(&mut rng, kind, rows, cols);
                let bias = numbers(&mut rng, rows);
                for tokens in [1, 2, 3, 8, 37] {
                    // The larger ones repeat what the smaller ones have shown.
                    if cols == 4096 && ![1, 37].contains(&tokens) {
                        continue;
                    }
                    let x = numbers(&mut rng, tokens * cols);
                    let bias = Some(&bias[..]).filter(|_| tokens != 3);
                    let output = if tokens == 2 { Output::Add } else { Output::Replace };
                    weights.check(what, gpu, bias, &x, output);
                }
            }
        }
    });
}

/// What a device does that shares a matrix's rows with another.
#[test]
fn the_first_rows_are_a_matrix_of_their_own() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(38);
        let (rows, cols) = (70, 448);
        for kind in KINDS {
            let weights = Packed::random(&mut rng, kind, rows, cols);
            let bytes = gpu.upload(&weights.bytes).unwrap();
            for (tokens, part) in [(1, 16), (3, 48), (20, 32), (20, 70)] {
                let x = gpu.upload(&numbers(&mut rng, tokens * cols)).unwrap();
                let mut room = QuantizedVec::new(gpu, x.len(), Precision::Bits8).unwrap();
                let mut out = gpu.upload(&vec![f32::NAN; tokens * part]).unwrap();
                gpu.scope(|scope| {
                    let x = room.fill(scope, &scope.vec(&x)?, cols, Precision::Bits8)?;
                    let weights = PackedWeights::new(weights.layout, scope.vec(&bytes)?);
                    let (weights, out) = (weights.first_rows(part), scope.vec_mut(&mut out)?);
                    ops::matmul(scope, &weights, None, &x, Output::Replace, &out)
                })
                .unwrap();
                let seen = room.dequantize(gpu, tokens, cols, Precision::Bits8).unwrap();
                let plain = &weights.plain[..part * cols];
                let expected = products(plain, None, &seen, cols, 20.0, 65504.0);
                let what = format!("{what}: {kind:?} {part} rows, {tokens} tokens");
                assert_close(&what, &gpu.read(&out).unwrap(), &expected);
            }
        }
    });
}

/// Matrices of one input in one launch: as many as q, k and v are, and more, of two kinds, with biases and without.
#[test]
fn several_matrices_of_one_input_are_what_each_of_them_is() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(39);
        let cols = 448;
        let matrices: Vec<(Packed, Option<Vec<f32>>)> = [40, 17, 100, 16, 50]
            .into_iter()
            .enumerate()
            .map(|(i, rows)| {
                let bias = (i < 4).then(|| numbers(&mut rng, rows));
                (Packed::random(&mut rng, KINDS[usize::from(i == 3)], rows, cols), bias)
            })
            .collect();
        let weights: Vec<_> = matrices.iter().map(|(m, _)| gpu.upload(&m.bytes).unwrap()).collect();
        let biases: Vec<_> =
            matrices.iter().map(|(_, b)| b.as_ref().map(|b| gpu.upload(b).unwrap())).collect();
        for tokens in [1, 5, 33] {
            let x = gpu.upload(&numbers(&mut rng, tokens * cols)).unwrap();
            let mut room = QuantizedVec::new(gpu, x.len(), Precision::Bits8).unwrap();
            let rows = |m: &Packed| m.layout.rows();
            let mut outs: Vec<_> = matrices
                .iter()
                .map(|(m, _)| gpu.upload(&vec![f32::NAN; tokens * rows(m)]).unwrap())
                .collect();
            gpu.scope(|scope| {
                let x = room.fill(scope, &scope.vec(&x)?, cols, Precision::Bits8)?;
                let mut lent = Vec::new();
                for (i, out) in outs.iter_mut().enumerate() {
                    let bytes = scope.vec(&weights[i])?;
                    let weights = PackedWeights::new(matrices[i].0.layout, bytes);
                    let bias = biases[i].as_ref().map(|bias| scope.vec(bias)).transpose()?;
                    lent.push((weights, bias, scope.vec_mut(out)?));
                }
                let products: Vec<_> = lent
                    .iter()
                    .map(|(weights, bias, out)| Dense { weights, bias: bias.as_ref(), out })
                    .collect();
                ops::matmul_all(scope, &products, &x, Output::Replace)
            })
            .unwrap();
            let seen = room.dequantize(gpu, tokens, cols, Precision::Bits8).unwrap();
            for (i, ((m, bias), out)) in matrices.iter().zip(&outs).enumerate() {
                let expected = products(&m.plain, bias.as_deref(), &seen, cols, 20.0, 65504.0);
                let what = format!("{what}: matrix {i}, {tokens} tokens");
                assert_close(&what, &gpu.read(out).unwrap(), &expected);
            }
        }
    });
}

/// The largest and smallest quants, scales at the ends of f16, and activations that make every sum as large as it
/// can be, so that whatever saturates does.
#[test]
fn extreme_blocks() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(33);
        let (rows, cols) = (20, 448);
        for kind in KINDS {
            for quants in inputs::EXTREME_QUANTS {
                // 14 blocks a row: each row begins with another scale.
                let blocks = rows * cols / kind.dtype().block_len();
                let raw = inputs::extreme_blocks(kind.dtype().block_bytes(), blocks, quants);
                let weights = Packed::of(kind, rows, cols, &raw);
                for activation in inputs::EXTREME_ACTIVATIONS {
                    for tokens in [1, 11] {
                        let x: Vec<f32> =
                            (0..tokens * cols).map(|i| activation(i % cols, &mut rng)).collect();
                        weights.check(what, gpu, None, &x, Output::Replace);
                    }
                }
            }
        }
    });
}

#[test]
fn activations_keep_within_half_a_step() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(36);
        let (tokens, cols) = (40, 64);
        let x = inputs::activations_to_quantize(&mut rng, tokens * cols);
        for (precision, steps) in PRECISIONS.into_iter().zip([127.0, 254.0 * 127.0]) {
            let mut room = QuantizedVec::new(gpu, x.len(), precision).unwrap();
            let input = gpu.upload(&x).unwrap();
            gpu.scope(|scope| {
                let quantized = room.fill(scope, &scope.vec(&input)?, cols, precision)?;
                assert_eq!((quantized.tokens(), quantized.cols()), (tokens, cols));
                Ok(())
            })
            .unwrap();
            let back = room.dequantize(gpu, tokens, cols, precision).unwrap();
            for (x, back) in x.chunks_exact(32).zip(back.chunks_exact(32)) {
                let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                for (x, back) in x.iter().zip(back) {
                    let allowed = largest / steps * 0.501;
                    assert!((x - back).abs() <= allowed, "{what}: {x} became {back}");
                }
            }
        }
    });
}

#[test]
fn what_is_not_finite_stays_in_its_token() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(37);
        let (rows, cols, tokens) = (20, 448, 12);
        for kind in KINDS {
            let weights = Packed::random(&mut rng, kind, rows, cols);
            let bytes = gpu.upload(&weights.bytes).unwrap();
            let mut x = numbers(&mut rng, tokens * cols);
            x[cols + 370] = f32::NAN;
            x[3 * cols] = f32::INFINITY;
            x[4 * cols + 33] = f32::NEG_INFINITY;
            for count in [6, 12] {
                let (x, start) = (&x[..count * cols], vec![0.0; count * rows]);
                let (out, _) = product(
                    gpu,
                    weights.layout,
                    &bytes,
                    None,
                    x,
                    Precision::Bits8,
                    Output::Replace,
                    &start,
                );
                for (i, out) in out.iter().enumerate() {
                    let expected = [1, 3, 4].contains(&(i / rows));
                    assert_eq!(out.is_nan(), expected, "{what}: {kind:?} {count} {i}");
                }
            }
        }
    });
}

#[test]
fn results_do_not_depend_on_company() {
    const FEW: &[(usize, &[(usize, usize)])] = &[(8, &[(0, 1), (3, 2), (2, 5)])];
    const ANY: &[(usize, &[(usize, usize)])] = &[FEW[0], (40, &[(0, 9), (20, 17)])];
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(34);
        let of_bits = |(rows, cols, sets), precisions: [Precision; 2]| {
            KINDS.into_iter().zip(precisions).map(move |with| (rows, cols, sets, with))
        };
        let small = of_bits((50, 448, ANY), PRECISIONS);
        // Where a matrix is as large as an lm_head, tensor cores may take few tokens.
        let large = of_bits((17_000, 1088, FEW), [Precision::Bits8; 2]);
        for (rows, cols, sets, (kind, precision)) in small.chain(large) {
            let weights = Packed::random(&mut rng, kind, rows, cols);
            let bytes = gpu.upload(&weights.bytes).unwrap();
            let x = numbers(&mut rng, 40 * cols);
            let run = |first: usize, count: usize| {
                let x = &x[first * cols..(first + count) * cols];
                let start = vec![0.0; count * rows];
                let layout = weights.layout;
                product(gpu, layout, &bytes, None, x, precision, Output::Replace, &start).0
            };
            // Few tokens and many are added up in different orders, but each in one of its own.
            for &(all, parts) in sets {
                let whole = run(0, all);
                for &(first, count) in parts {
                    let part = run(first, count);
                    let same = part == whole[first * rows..(first + count) * rows];
                    assert!(same, "{what} {kind:?} {rows} x {cols}, {count} of {all}");
                }
            }
        }
    });
}
