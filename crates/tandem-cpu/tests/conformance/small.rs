//! Normalisation, activation and rotary embedding.

use tandem_cpu::Cpu;
use tandem_cpu::ops::{
    Input, LayerNorm, MatrixRef, Precision, QuantizedActivations, Rope, Weights, silu_mul,
};
use tandem_formats::DType;
use tandem_memory::{AlignedBuffer, PackedLayout, PackedMatrix, PackedType};
use tandem_testkit::oracle::{self, assert_close};

use super::{Random, on_every_isa};

#[test]
fn layer_norm_is_exact_to_rounding() {
    on_every_isa(|cpu| {
        let mut random = Random(21);
        for width in [1, 3, 32, 37, 96, 448, 4096] {
            for tokens in [1, 3, 17] {
                // With the mean far off a single pass in f32 would lose every digit.
                for (offset, scale) in
                    [(0.0, 1.0), (1e4, 1.0), (-3.0, 1e-4), (0.0, 1e15), (7.5, 0.0)]
                {
                    let x: Vec<f32> = (random.numbers(tokens * width).iter())
                        .map(|x| offset + scale * x)
                        .collect();
                    let (weight, bias) = (random.numbers(width), random.numbers(width));
                    let eps = 1e-5;
                    let expected = oracle::layer_norm(&x, &weight, &bias, eps, 0.0);
                    let mut out = vec![f32::NAN; x.len()];
                    LayerNorm { weight: &weight, bias: &bias, eps }.apply(cpu, &x, &mut out);
                    let what = format!("{} {tokens} x {width}, {offset} +- {scale}", cpu.isa());
                    assert_close(&what, &out, &expected);
                }
            }
        }
    });
}

/// SiLU of one row, for no packed weights.
fn silu(cpu: &Cpu, gate: &mut [f32], up: &[f32]) {
    let mut unused = QuantizedActivations::default();
    silu_mul(cpu, gate, up, up.len().max(1), (&[], Precision::Bits8), &mut unused);
}

/// Norm and SiLU hand their results on quantized: to the last bit what quantizing them afterwards gives, for packed
/// weights alone.
#[test]
fn results_are_quantized_on_the_way() {
    let layout = PackedLayout::new(PackedType::Q8_0, 16, 96).unwrap();
    let buffer = AlignedBuffer::zeroed(layout.n_bytes()).unwrap();
    let packed = Weights::from(PackedMatrix::new(layout, &buffer));
    let bytes = [0; 96 * 4];
    let plain = Weights::from(MatrixRef::new(DType::F32, 1, 96, &bytes));
    on_every_isa(|cpu| {
        let mut random = Random(27);
        for tokens in [1, 2, 5, 200] {
            let (x, up) = (random.numbers(tokens * 96), random.numbers(tokens * 96));
            let (weight, bias) = (random.numbers(96), random.numbers(96));
            let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
            for precision in [Precision::Bits8, Precision::Bits16] {
                let mut on_the_way = QuantizedActivations::default();
                let check = |out: &[f32], on_the_way: &QuantizedActivations, exact: &[f32]| {
                    let mut afterwards = QuantizedActivations::default();
                    afterwards.fill(cpu, exact, 96, precision);
                    assert_eq!(out, exact);
                    assert_eq!(on_the_way.dequantize(), afterwards.dequantize());
                };
                let (mut exact, mut out) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                norm.apply(cpu, &x, &mut exact);
                norm.input(cpu, &x, &mut out, (&[plain, packed], precision), &mut on_the_way);
                check(&out, &on_the_way, &exact);
                let (mut exact, mut out) = (x.clone(), x.clone());
                exact
                    .chunks_exact_mut(96)
                    .zip(up.chunks_exact(96))
                    .for_each(|(x, up)| silu(cpu, x, up));
                silu_mul(cpu, &mut out, &up, 96, (&[packed], precision), &mut on_the_way);
                check(&out, &on_the_way, &exact);
            }
            let mut untouched = QuantizedActivations::default();
            let mut out = vec![0.0; x.len()];
            let input: Input<'_> =
                norm.input(cpu, &x, &mut out, (&[plain], Precision::Bits8), &mut untouched);
            assert_eq!(format!("{:?}", input.in_f32()), format!("{input:?}"));
            assert_eq!(untouched.tokens(), 0);
        }
    });
}

#[test]
fn silu_over_the_whole_range() {
    on_every_isa(|cpu| {
        let mut random = Random(22);
        for count in [0, 1, 7, 8, 9, 448, 20_000] {
            let gate: Vec<f32> = (0..count)
                .map(|i| random.number() * [1e-20, 1e-3, 1.0, 10.0, 80.0, 1e4, 1e30][i % 7])
                .collect();
            let up = random.numbers(count);
            let mut out = gate.clone();
            silu(cpu, &mut out, &up);
            let expected = oracle::silu_mul(&gate, &up);
            assert_close(&format!("{} {count}", cpu.isa()), &out, &expected);
        }
    });
}

#[test]
fn silu_of_special_numbers() {
    on_every_isa(|cpu| {
        let mut gate = [f32::NAN, f32::INFINITY, 0.0, -0.0, 1.0, 1.0, 1.0, 1.0, f32::NAN];
        let up = [1.0, 1.0, 1.0, 1.0, f32::NAN, 0.0, f32::INFINITY, -0.0, 1.0];
        silu(cpu, &mut gate, &up);
        assert!(gate[0].is_nan() && gate[4].is_nan() && gate[8].is_nan());
        assert_eq!([gate[1], gate[6]], [f32::INFINITY; 2]);
        assert_eq!([gate[2], gate[3], gate[5], gate[7]], [0.0; 4]);
    });
}

#[test]
fn rope_rotates_pairs_half_a_head_apart() {
    let mut random = Random(23);
    for (heads, dim, theta) in
        [(1, 2, 10_000f32), (2, 32, 10_000.0), (4, 128, 10_000.0), (3, 96, 500_000.0)]
    {
        let rope = Rope::new(dim, theta);
        let mut tabled = rope.clone();
        tabled.extend_table(40);
        tabled.extend_table(100);
        for position in [0, 1, 17, 99, 100, 2047, 4095] {
            let x = random.numbers(heads * dim);
            let mut out = x.clone();
            rope.apply(&mut out, position);
            let mut same = x.clone();
            tabled.apply(&mut same, position);
            assert_eq!(out, same);
            let expected = oracle::rope(&x, dim, theta, position);
            assert_close(&format!("{heads} heads of {dim} at {position}"), &out, &expected);
        }
    }
}
