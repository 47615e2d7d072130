//! Normalisation, activation and rotary embedding.

use tandem_cpu::ops::{Rope, layer_norm, silu_mul};
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
                    layer_norm(cpu, &x, &weight, &bias, eps, &mut out);
                    let what = format!("{} {tokens} x {width}, {offset} +- {scale}", cpu.isa());
                    assert_close(&what, &out, &expected);
                }
            }
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
            silu_mul(cpu, &mut out, &up);
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
        silu_mul(cpu, &mut gate, &up);
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
