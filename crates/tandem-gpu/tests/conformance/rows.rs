//! Weights in rows: products in f32, and the embedding table in every encoding.

use tandem_formats::{DType, blocks};
use tandem_gpu::ops::{self, FloatWeights, Output, PackedWeights, Table};
use tandem_memory::{PackedLayout, PackedType};
use tandem_testkit::Rng;
use tandem_testkit::oracle::{assert_close, products};

use super::{numbers, on_every_gpu};

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Weights as in a file, and what they stand for.
fn encoded(dtype: DType, weights: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0; dtype.bytes_for(weights.len()).unwrap()];
    blocks::quantize(dtype, weights, &mut bytes).unwrap();
    let mut plain = vec![0.0; weights.len()];
    blocks::dequantize(dtype, &bytes, &mut plain);
    (bytes, plain)
}

#[test]
fn products_of_every_encoding_and_size() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(41);
        for dtype in FLOATS {
            for (rows, cols) in [(1, 1), (5, 33), (16, 448), (67, 4096)] {
                let (bytes, plain) = encoded(dtype, &numbers(&mut rng, rows * cols));
                let bytes = gpu.upload(&bytes).unwrap();
                for tokens in [1, 2, 7, 19] {
                    let x = numbers(&mut rng, tokens * cols);
                    let bias = numbers(&mut rng, rows);
                    let bias = Some(&bias[..]).filter(|_| tokens != 7);
                    let bias_vec = bias.map(|bias| gpu.upload(bias).unwrap());
                    let (input, mut out) = (
                        gpu.upload(&x).unwrap(),
                        gpu.upload(&vec![f32::NAN; tokens * rows]).unwrap(),
                    );
                    gpu.scope(|scope| {
                        let bytes = scope.vec(&bytes)?;
                        let weights = FloatWeights::new(dtype, rows, cols, bytes, scope)?;
                        let bias = bias_vec.as_ref().map(|bias| scope.vec(bias)).transpose()?;
                        let (x, out) = (scope.vec(&input)?, scope.vec_mut(&mut out)?);
                        let replace = Output::Replace;
                        ops::matmul_rows(scope, &weights, bias.as_ref(), &x, replace, &out)
                    })
                    .unwrap();
                    // 16 lanes, whose sums are then added one by one.
                    let roundings = (cols / 16 + 20) as f64;
                    let expected = products(&plain, bias, &x, cols, roundings, 1.0);
                    let what = format!("{what}: {dtype} {rows} x {cols}, {tokens} tokens");
                    assert_close(&what, &gpu.read(&out).unwrap(), &expected);
                }
            }
        }
    });
}

#[test]
fn embedding_rows_are_exact() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(42);
        let (rows, cols) = (37, 96);
        let ids = [0u32, 36, 17, 17, 15, 16];
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0] {
            let (bytes, plain) = encoded(dtype, &numbers(&mut rng, rows * cols));
            let layout = PackedType::of(dtype).and_then(|kind| PackedLayout::new(kind, rows, cols));
            let stored = layout.map_or(bytes.clone(), |layout| {
                let mut packed = vec![0; layout.n_bytes()];
                let (quants, scales) = packed.split_at_mut(layout.quant_bytes());
                layout.pack_tiles(&bytes, quants, scales);
                packed
            });
            let (stored, wanted) = (gpu.upload(&stored).unwrap(), gpu.upload(&ids).unwrap());
            let mut out = gpu.zeros(ids.len() * cols).unwrap();
            gpu.scope(|scope| {
                let (bytes, ids) = (scope.vec(&stored)?, scope.vec(&wanted)?);
                let out = scope.vec_mut(&mut out)?;
                match layout {
                    Some(layout) => {
                        let packed = PackedWeights::new(layout, bytes);
                        ops::embedding(scope, &Table::Packed(&packed), &ids, &out)
                    }
                    None => {
                        let floats = FloatWeights::new(dtype, rows, cols, bytes, scope)?;
                        ops::embedding(scope, &Table::Rows(&floats), &ids, &out)
                    }
                }
            })
            .unwrap();
            let expected: Vec<f32> =
                ids.iter().flat_map(|&id| &plain[id as usize * cols..][..cols]).copied().collect();
            assert_eq!(gpu.read(&out).unwrap(), expected, "{what}: {dtype}");
        }
    });
}

#[test]
fn encodings_without_kernels_are_named() {
    on_every_gpu(|what, gpu| {
        let bytes = gpu.zeros::<u8>(144).unwrap();
        gpu.scope(|scope| {
            let made = FloatWeights::new(DType::Q4_K, 1, 256, scope.vec(&bytes)?, scope);
            let message = made.unwrap_err().to_string();
            assert!(message.contains("lacks kernels for q4_k"), "{what}: {message}");
            Ok(())
        })
        .unwrap();
    });
}
