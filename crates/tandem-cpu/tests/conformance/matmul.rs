//! Products of weights and activations.

use half::f16;
use tandem_cpu::ops::{Input, Largest, Product, matmul, matmul_all};
use tandem_cpu::{Cpu, MatrixRef};
use tandem_formats::{DType, blocks};
use tandem_testkit::oracle::{Expected, U, assert_close, products};

use super::{Random, on_every_isa, roundings};

/// Weights as the oracle sees them, and as the operation does.
struct Weights {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    plain: Vec<f32>,
}

impl Weights {
    /// Random weights between about -1 and 1. Blocks get random bytes, so every quant occurs, and sane scales.
    fn random(random: &mut Random, dtype: DType, rows: usize, cols: usize) -> Self {
        let mut bytes = vec![0; dtype.bytes_for(cols).unwrap() * rows];
        if dtype.is_quantized() {
            bytes.iter_mut().for_each(|byte| *byte = random.bits() as u8);
            for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
                for &at in scales(dtype) {
                    let scale = f16::from_f32(random.number() * 0.05);
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        } else {
            blocks::quantize(dtype, &random.numbers(rows * cols), &mut bytes).unwrap();
        }
        Self::encoded(dtype, rows, cols, bytes)
    }

    fn encoded(dtype: DType, rows: usize, cols: usize, bytes: Vec<u8>) -> Self {
        let mut plain = vec![0.0; rows * cols];
        blocks::dequantize(dtype, &bytes, &mut plain);
        Self { dtype, rows, cols, bytes, plain }
    }

    fn matrix(&self) -> MatrixRef<'_> {
        MatrixRef::new(self.dtype, self.rows, self.cols, &self.bytes)
    }

    /// `W x + b` for every token in f64, with the error that f32 may make.
    fn oracle(&self, bias: Option<&[f32]>, x: &[f32]) -> Vec<Expected> {
        products(&self.plain, bias, x, self.cols, roundings(self.cols), 1.0)
    }
}

/// Where a block keeps its f16 factors.
fn scales(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q6_K => &[208],
    }
}

fn check(cpu: &Cpu, weights: &Weights, bias: Option<&[f32]>, x: &[f32]) {
    let tokens = x.len() / weights.cols;
    // Whatever was there must be overwritten.
    let mut out = vec![f32::NAN; tokens * weights.rows];
    matmul(cpu, weights.matrix(), bias, Input::exact(x), &mut out);
    let Weights { dtype, rows, cols, .. } = weights;
    let what = format!("{} {dtype} {rows} x {cols}, {tokens} tokens", cpu.isa());
    assert_close(&what, &out, &weights.oracle(bias, x));
}

#[test]
fn every_encoding_size_and_number_of_tokens() {
    on_every_isa(|cpu| {
        let mut random = Random(1);
        for dtype in DType::ALL {
            // Rows that fill no tile, columns of one block, of several, of an expert and of the model.
            for (rows, cols) in
                [(1, 32usize), (5, 96), (67, 448), (131, 256), (19, 768), (10, 4096)]
            {
                if !cols.is_multiple_of(dtype.block_len()) {
                    continue;
                }
                let weights = Weights::random(&mut random, dtype, rows, cols);
                let bias = random.numbers(rows);
                for tokens in [0, 1, 2, 3, 17] {
                    let x = random.numbers(tokens * cols);
                    check(cpu, &weights, Some(&bias[..]).filter(|_| tokens != 3), &x);
                }
            }
        }
    });
}

#[test]
fn floats_of_any_number_of_columns() {
    on_every_isa(|cpu| {
        let mut random = Random(2);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for cols in [1, 7, 8, 9, 31, 33, 40, 513, 1029] {
                let weights = Weights::random(&mut random, dtype, 6, cols);
                for tokens in [1, 4] {
                    let x = random.numbers(tokens * cols);
                    check(cpu, &weights, None, &x);
                }
            }
        }
    });
}

#[test]
fn more_tokens_than_a_tile_holds() {
    on_every_isa(|cpu| {
        let mut random = Random(3);
        let weights = Weights::random(&mut random, DType::Q4_0, 70, 544);
        for tokens in [95, 97, 200] {
            let x = random.numbers(tokens * weights.cols);
            check(cpu, &weights, None, &x);
        }
    });
}

#[test]
fn large_tiny_and_cancelling_numbers() {
    on_every_isa(|cpu| {
        let mut random = Random(4);
        let (rows, cols) = (9, 448);
        for scale in [1e-37, 1e-20, 1e15, 3e17] {
            let plain: Vec<f32> = random.numbers(rows * cols).iter().map(|w| w * scale).collect();
            for dtype in [DType::F32, DType::BF16] {
                let mut bytes = vec![0; dtype.bytes_for(plain.len()).unwrap()];
                blocks::quantize(dtype, &plain, &mut bytes).unwrap();
                let weights = Weights::encoded(dtype, rows, cols, bytes);
                for tokens in [1, 3] {
                    let mut x = random.numbers(tokens * cols);
                    // Exact cancellation in half of the sum.
                    x.iter_mut().step_by(2).for_each(|x| *x = 0.0);
                    x.iter_mut().skip(1).step_by(4).for_each(|x| *x *= scale.min(1e18));
                    check(cpu, &weights, None, &x);
                }
            }
        }
        let extremes =
            [f16::MAX, f16::MIN, f16::MIN_POSITIVE_SUBNORMAL, f16::MIN_POSITIVE, f16::NEG_ZERO];
        let halves: Vec<u8> =
            (0..rows * cols).flat_map(|i| extremes[i * 7 % 5].to_le_bytes()).collect();
        let weights = Weights::encoded(DType::F16, rows, cols, halves);
        for tokens in [1, 3] {
            check(cpu, &weights, None, &random.numbers(tokens * cols));
        }
    });
}

/// The largest and smallest quants with scales at the ends of f16.
#[test]
fn extreme_blocks() {
    on_every_isa(|cpu| {
        let mut random = Random(5);
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_quantized()) {
            let (rows, cols) = (4, 512);
            for fill in [0x00, 0xff, 0x80, 0x7f, 0x08] {
                let mut bytes = vec![fill; dtype.bytes_for(cols).unwrap() * rows];
                for (i, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
                    let ends = [f16::MAX, f16::MIN, f16::MIN_POSITIVE_SUBNORMAL, f16::ZERO];
                    for &at in scales(dtype) {
                        block[at..at + 2].copy_from_slice(&ends[i % 4].to_le_bytes());
                    }
                }
                let weights = Weights::encoded(dtype, rows, cols, bytes);
                for tokens in [1, 3] {
                    check(cpu, &weights, None, &random.numbers(tokens * cols));
                }
            }
        }
    });
}

#[test]
fn what_is_not_a_number_stays_in_its_row_and_token() {
    on_every_isa(|cpu| {
        let (rows, cols, tokens) = (6, 40, 4);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let mut plain = vec![1.0; rows * cols];
            plain[2 * cols + 39] = f32::NAN;
            plain[4 * cols] = f32::INFINITY;
            let mut bytes = vec![0; dtype.bytes_for(plain.len()).unwrap()];
            blocks::quantize(dtype, &plain, &mut bytes).unwrap();
            let mut x = vec![1.0; tokens * cols];
            x[3 * cols + 20] = f32::NAN;
            for tokens in [1, 4] {
                let mut out = vec![0.0; tokens * rows];
                let weights = MatrixRef::new(dtype, rows, cols, &bytes);
                matmul(cpu, weights, None, Input::exact(&x[..tokens * cols]), &mut out);
                for (i, out) in out.iter().enumerate() {
                    let (token, row) = (i / rows, i % rows);
                    match (token, row) {
                        (3, _) | (_, 2) => assert!(out.is_nan(), "{dtype} {token} {row}"),
                        (_, 4) => assert_eq!(*out, f32::INFINITY),
                        _ => assert_eq!(*out, cols as f32),
                    }
                }
            }
        }
    });
}

#[test]
fn products_in_one_go_are_the_products() {
    on_every_isa(|cpu| {
        let mut random = Random(6);
        let shapes = [
            (DType::BF16, 33, 96, 1),
            (DType::Q8_0, 4, 448, 5),
            (DType::F32, 100, 7, 0),
            (DType::Q4_0, 1, 32, 98),
        ];
        let weights: Vec<_> = shapes
            .iter()
            .map(|&(dtype, rows, cols, _)| Weights::random(&mut random, dtype, rows, cols))
            .collect();
        let xs: Vec<_> =
            shapes.iter().map(|&(_, _, cols, tokens)| random.numbers(tokens * cols)).collect();
        let biases: Vec<_> = shapes.iter().map(|&(_, rows, ..)| random.numbers(rows)).collect();
        let mut outs: Vec<_> =
            shapes.iter().map(|&(_, rows, _, tokens)| vec![f32::NAN; rows * tokens]).collect();
        let mut products: Vec<_> = (outs.iter_mut().enumerate())
            .map(|(i, out)| {
                let input = Input::exact(&xs[i]);
                Product::new(weights[i].matrix(), Some(&biases[i]), input, out)
            })
            .collect();
        matmul_all(cpu, &mut products);
        matmul_all(cpu, &mut []);
        for (i, out) in outs.iter().enumerate() {
            assert_close(
                &format!("product {i}"),
                out,
                &weights[i].oracle(Some(&biases[i]), &xs[i]),
            );
        }
    });
}

/// A residual connection: the product is added to what is there. And the largest results are those of all.
#[test]
fn products_are_added_and_their_largest_kept() {
    on_every_isa(|cpu| {
        let mut random = Random(31);
        let weights = Weights::random(&mut random, DType::BF16, 300, 64);
        for tokens in [1, 5] {
            let (x, bias) = (random.numbers(tokens * 64), random.numbers(300));
            let before = random.numbers(tokens * 300);
            let mut expected = weights.oracle(Some(&bias), &x);
            for ((sum, tolerance), before) in expected.iter_mut().zip(&before) {
                *sum += f64::from(*before);
                *tolerance += 4.0 * U * (sum.abs() + f64::from(before.abs()));
            }
            let mut out = before.clone();
            let input = Input::exact(&x);
            let product = Product::new(weights.matrix(), Some(&bias), input, &mut out);
            matmul_all(cpu, &mut [Product { accumulate: true, ..product }]);
            assert_close(&format!("{} added, {tokens} tokens", cpu.isa()), &out, &expected);
        }
        let x = random.numbers(64);
        let mut out = vec![0.0; 300];
        let allowed = |row| row % 5 != 0;
        let largest = Largest::new(7, &allowed);
        let product = Product::new(weights.matrix(), None, Input::exact(&x), &mut out);
        matmul_all(cpu, &mut [Product { largest: std::slice::from_ref(&largest), ..product }]);
        let mut expected: Vec<(f32, u32)> =
            out.iter().copied().zip(0..).filter(|(_, row)| row % 5 != 0).collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        assert_eq!(largest.into_sorted(), expected[..7]);
    });
}

#[test]
fn results_depend_neither_on_threads_nor_on_company() {
    let mut random = Random(7);
    let (rows, cols, tokens) = (150, 1056, 110);
    for dtype in [DType::BF16, DType::Q4_0, DType::Q5_1] {
        let weights = Weights::random(&mut random, dtype, rows, cols);
        let x = random.numbers(tokens * cols);
        let results = std::cell::RefCell::new(Vec::new());
        on_every_isa(|cpu| {
            let product = |x: &[f32]| {
                let mut out = vec![0.0; x.len() / cols * rows];
                matmul(cpu, weights.matrix(), None, Input::exact(x), &mut out);
                out
            };
            let all = product(&x);
            // Two tokens of the batch alone: the same to the last bit.
            assert_eq!(product(&x[50 * cols..52 * cols]), all[50 * rows..52 * rows]);
            results.borrow_mut().push((cpu.isa(), all, product(&x[..cols])));
        });
        for pair in results.into_inner().chunks_exact(2) {
            assert!(pair[0] == pair[1], "{dtype}, {}", pair[0].0);
        }
    }
}

#[test]
fn wrong_sizes_are_noticed() {
    on_every_isa(|cpu| {
        let weights = Weights::random(&mut Random(8), DType::F32, 4, 8);
        let fails = |bias: Option<&[f32]>, x: usize, out: usize| {
            let call = || {
                let x = vec![0.0; x];
                matmul(cpu, weights.matrix(), bias, Input::exact(&x), &mut vec![0.0; out]);
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err()
        };
        assert!(!fails(Some(&[0.0; 4]), 16, 8));
        assert!(fails(Some(&[0.0; 3]), 16, 8));
        assert!(fails(None, 15, 8));
        assert!(fails(None, 16, 7));
    });
}
