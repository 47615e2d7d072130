//! Products of packed weights and activations in 8 bits.
//!
//! The oracle multiplies what the weights and the 8-bit activations stand for, in f64. Dot products of quants are
//! whole numbers and must be exact; what is allowed are the roundings of f32 afterwards: two for each block's
//! product with its scales, one for each block that is added, and those of 16 bits: in `dequantize`, which the oracle
//! starts from, and where both halves are added.

use tandem_cpu::Cpu;
use tandem_cpu::ops::{
    Input, Precision, Product, QuantizedActivations, Weights, matmul, matmul_all,
};
use tandem_formats::{DType, blocks};
use tandem_memory::{AlignedBuffer, PackedLayout, PackedMatrix, PackedType};
use tandem_testkit::oracle::{Expected, assert_close, products};
use tandem_testkit::{Rng, packed as inputs};

use super::{Random, every_cpu};

const KINDS: [PackedType; 2] = [PackedType::Q4_0, PackedType::Q8_0];
const PRECISIONS: [Precision; 2] = [Precision::Bits8, Precision::Bits16];

/// Weights as the oracle sees them, and as the operation does.
struct Packed {
    layout: PackedLayout,
    buffer: AlignedBuffer,
    plain: Vec<f32>,
}

impl Packed {
    /// Every quant occurs, and scales are sane.
    fn random(rng: &mut Rng, kind: PackedType, rows: usize, cols: usize) -> Self {
        let blocks = rows * cols / kind.dtype().block_len();
        Self::of(kind, rows, cols, &inputs::random_blocks(rng, kind.dtype().block_bytes(), blocks))
    }

    fn of(kind: PackedType, rows: usize, cols: usize, raw: &[u8]) -> Self {
        let layout = PackedLayout::new(kind, rows, cols).unwrap();
        let mut buffer = AlignedBuffer::zeroed(layout.n_bytes()).unwrap();
        let (quants, scales) = buffer.split_at_mut(layout.quant_bytes());
        layout.pack_tiles(raw, quants, scales);
        let mut plain = vec![0.0; rows * cols];
        blocks::dequantize(kind.dtype(), raw, &mut plain);
        Self { layout, buffer, plain }
    }

    fn weights(&self) -> Weights<'_> {
        PackedMatrix::new(self.layout, &self.buffer).into()
    }

    /// `W x + b` for every token in f64, with the error that f32 may make.
    fn oracle(&self, bias: Option<&[f32]>, x: &[f32]) -> Vec<Expected> {
        let cols = self.layout.cols();
        // The largest scale there is brings what was lost into sight.
        products(&self.plain, bias, x, cols, (cols / 32 + 6) as f64, 65504.0)
    }

    /// Holds every instruction set, alone and with company, against the oracle.
    fn check(&self, cpus: &[Cpu], bias: Option<&[f32]>, x: &[f32]) {
        let (rows, cols) = (self.layout.rows(), self.layout.cols());
        let tokens = x.len() / cols;
        for precision in PRECISIONS {
            let mut quantized = QuantizedActivations::default();
            quantized.fill(&cpus[0], x, cols, precision);
            let expected = self.oracle(bias, &quantized.dequantize());
            for cpu in cpus {
                let mut out = vec![f32::NAN; tokens * rows];
                let input = Input::new(cpu, x, &[self.weights()], precision, &mut quantized);
                matmul(cpu, self.weights(), bias, input, &mut out);
                let kind = self.layout.kind();
                let what = format!(
                    "{} {kind:?} {rows} x {cols}, {tokens} tokens, {precision:?}",
                    cpu.isa()
                );
                assert_close(&what, &out, &expected);
            }
        }
    }
}

#[test]
fn every_size_and_number_of_tokens() {
    let cpus = every_cpu();
    let mut random = Random(31);
    let mut rng = Rng::new(31);
    for kind in KINDS {
        for cols in [32, 96, 448, 4096] {
            for rows in (1..=40).filter(|rows| cols < 4096 || [1, 15, 16, 17, 40].contains(rows)) {
                let weights = Packed::random(&mut rng, kind, rows, cols);
                let bias = random.numbers(rows);
                // Larger rows repeat what smaller ones have shown.
                let all_tokens: &[usize] =
                    if rows % 8 == 1 { &[0, 1, 2, 3, 4, 5, 17] } else { &[1, 7] };
                for &tokens in all_tokens {
                    let x = random.numbers(tokens * cols);
                    weights.check(&cpus, Some(&bias[..]).filter(|_| tokens != 3), &x);
                }
            }
        }
    }
}

#[test]
fn more_tokens_than_an_item_holds() {
    let cpus = every_cpu();
    let mut random = Random(32);
    let mut rng = Rng::new(32);
    for kind in KINDS {
        let weights = Packed::random(&mut rng, kind, 70, 1088);
        for tokens in [63, 65, 129, 260] {
            weights.check(&cpus, None, &random.numbers(tokens * 1088));
        }
    }
}

/// The largest and smallest quants, scales at the ends of f16, and activations that make every sum as large as it
/// can be, so that whatever saturates does.
#[test]
fn extreme_blocks() {
    let cpus = every_cpu();
    let mut rng = Rng::new(33);
    let (rows, cols) = (20, 448);
    for kind in KINDS {
        for quants in inputs::EXTREME_QUANTS {
            // 14 blocks a row: each row begins with another scale.
            let blocks = rows * cols / kind.dtype().block_len();
            let raw = inputs::extreme_blocks(kind.dtype().block_bytes(), blocks, quants);
            let weights = Packed::of(kind, rows, cols, &raw);
            for activation in inputs::EXTREME_ACTIVATIONS {
                for tokens in [1, 11, 25] {
                    let x: Vec<f32> =
                        (0..tokens * cols).map(|i| activation(i % cols, &mut rng)).collect();
                    weights.check(&cpus, None, &x);
                }
            }
        }
    }
}

#[test]
fn results_depend_neither_on_threads_nor_on_company() {
    let mut random = Random(34);
    let mut rng = Rng::new(34);
    let (rows, cols, tokens) = (150, 1056, 110);
    for (kind, precision) in KINDS.into_iter().zip(PRECISIONS) {
        let weights = Packed::random(&mut rng, kind, rows, cols);
        let x = random.numbers(tokens * cols);
        let mut results = Vec::new();
        for cpu in every_cpu() {
            let product = |x: &[f32], selected: Option<&[u32]>| {
                let mut buffer = QuantizedActivations::default();
                let input = Input::new(&cpu, x, &[weights.weights()], precision, &mut buffer);
                let input = selected.map_or(input, |selected| input.select(selected));
                let count = selected.map_or(x.len() / cols, <[u32]>::len);
                let mut out = vec![0.0; count * rows];
                matmul(&cpu, weights.weights(), None, input, &mut out);
                out
            };
            let all = product(&x, None);
            for (first, count) in [(0, 1), (50, 1), (50, 2), (7, 3), (64, 9)] {
                let part = product(&x[first * cols..(first + count) * cols], None);
                assert!(part == all[first * rows..(first + count) * rows], "{}", cpu.isa());
            }
            let some = product(&x, Some(&[90, 3, 44, 3]));
            for (out, token) in some.chunks_exact(rows).zip([90, 3, 44, 3]) {
                assert!(out == &all[token * rows..][..rows], "{} token {token}", cpu.isa());
            }
            results.push((cpu.isa(), all));
        }
        for pair in results.chunks_exact(2) {
            assert!(pair[0] == pair[1], "{kind:?}, {}", pair[0].0);
        }
    }
}

/// Packed and other matrices together, each product with tokens of its own.
#[test]
fn products_in_one_go_are_the_products() {
    let mut random = Random(35);
    let mut rng = Rng::new(35);
    let cols = 96;
    let x = random.numbers(9 * cols);
    let packed: Vec<_> = [(PackedType::Q4_0, 50), (PackedType::Q8_0, 7)]
        .map(|(kind, rows)| Packed::random(&mut rng, kind, rows, cols))
        .into();
    let floats: Vec<u8> = random.numbers(33 * cols).iter().flat_map(|w| w.to_le_bytes()).collect();
    let floats = Weights::from(tandem_cpu::MatrixRef::new(DType::F32, 33, cols, &floats));
    let selections: [&[u32]; 3] = [&[0, 8, 4], &[], &[5]];
    for cpu in every_cpu() {
        let weights = [packed[0].weights(), packed[1].weights(), floats];
        let mut buffer = QuantizedActivations::default();
        let input = Input::new(&cpu, &x, &weights, Precision::Bits8, &mut buffer);
        let run = |tokens: &[u32], weights: Weights<'_>| {
            let mut out = vec![f32::NAN; tokens.len() * weights.rows()];
            matmul(&cpu, weights, None, input.select(tokens), &mut out);
            out
        };
        for weights in weights {
            let mut outs = selections.map(|tokens| vec![f32::NAN; tokens.len() * weights.rows()]);
            let mut products: Vec<_> = (selections.iter().zip(&mut outs))
                .map(|(tokens, out)| Product::new(weights, None, input.select(tokens), out))
                .collect();
            matmul_all(&cpu, &mut products);
            for (tokens, out) in selections.iter().zip(&outs) {
                assert_eq!(*out, run(tokens, weights), "{}", cpu.isa());
                // Selected tokens give what they give among all.
                let all: Vec<u32> = (0..9).collect();
                let all = run(&all, weights);
                if weights.is_packed() || tokens.len() > 1 {
                    for (out, &token) in out.chunks_exact(weights.rows()).zip(*tokens) {
                        assert_eq!(out, &all[token as usize * weights.rows()..][..out.len()]);
                    }
                }
            }
        }
    }
}

#[test]
fn activations_keep_within_half_a_step() {
    let cols = 64;
    let x = inputs::activations_to_quantize(&mut Rng::new(36), 40 * cols);
    for (precision, step) in PRECISIONS.into_iter().zip([127.0, 254.0 * 127.0]) {
        let results = every_cpu().into_iter().map(|cpu| {
            let mut quantized = QuantizedActivations::default();
            quantized.fill(&cpu, &x, cols, precision);
            assert_eq!((quantized.tokens(), quantized.cols()), (40, cols));
            quantized.dequantize()
        });
        let results: Vec<_> = results.collect();
        for (x, back) in x.chunks_exact(32).zip(results[0].chunks_exact(32)) {
            let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (x, back) in x.iter().zip(back) {
                assert!((x - back).abs() <= largest / step * 0.501, "{x} became {back}");
            }
        }
        // Not only close: the same on every machine.
        assert!(results.iter().all(|back| *back == results[0]));
    }
}

#[test]
fn what_is_not_finite_stays_in_its_token() {
    let mut random = Random(37);
    let mut rng = Rng::new(37);
    let (rows, cols, tokens) = (20, 96, 6);
    for kind in KINDS {
        let weights = Packed::random(&mut rng, kind, rows, cols);
        let mut x = random.numbers(tokens * cols);
        x[cols + 70] = f32::NAN;
        x[3 * cols] = f32::INFINITY;
        x[4 * cols + 33] = f32::NEG_INFINITY;
        for cpu in every_cpu() {
            let mut buffer = QuantizedActivations::default();
            let input = Input::new(&cpu, &x, &[weights.weights()], Precision::Bits8, &mut buffer);
            let mut out = vec![0.0; tokens * rows];
            matmul(&cpu, weights.weights(), None, input, &mut out);
            for (i, out) in out.iter().enumerate() {
                assert_eq!(out.is_nan(), [1, 3, 4].contains(&(i / rows)), "{} {i}", cpu.isa());
            }
        }
    }
}

#[test]
fn wrong_sizes_and_inputs_are_noticed() {
    let weights = Packed::random(&mut Rng::new(38), PackedType::Q8_0, 4, 64);
    for cpu in every_cpu() {
        let fails = |cols: usize, out: usize, quantized: bool| {
            let call = || {
                let x = vec![0.0; 128];
                let mut buffer = QuantizedActivations::default();
                buffer.fill(&cpu, &x, cols, Precision::Bits8);
                let input = if quantized {
                    Input::new(&cpu, &x, &[weights.weights()], Precision::Bits8, &mut buffer)
                } else {
                    Input::exact(&x)
                };
                matmul(&cpu, weights.weights(), None, input, &mut vec![0.0; out]);
            };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err()
        };
        assert!(!fails(64, 8, true));
        assert!(fails(64, 8, false));
        assert!(fails(64, 7, true));
        assert!(fails(48, 8, true));
    }
}
