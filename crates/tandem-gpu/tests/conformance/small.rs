//! Operations on rows: normalisation, quantization.

use tandem_gpu::ops;
use tandem_testkit::Rng;
use tandem_testkit::oracle::{self, assert_close};

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

fn run_norm(gpu: &tandem_gpu::Gpu, x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let [x_vec, weight, bias] = [x, weight, bias].map(|v| gpu.upload(v).unwrap());
    let mut out = gpu.upload(&vec![f32::NAN; x.len()]).unwrap();
    gpu.scope(|scope| {
        let (x, weight, bias) = (scope.vec(&x_vec)?, scope.vec(&weight)?, scope.vec(&bias)?);
        ops::layer_norm(scope, &x, &weight, &bias, eps, &scope.vec_mut(&mut out)?)
    })
    .unwrap();
    gpu.read(&out).unwrap()
}
