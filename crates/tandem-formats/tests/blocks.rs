//! Block formats against the Python package `gguf`, whose arithmetic is the reference.

use std::fs;
use std::path::Path;

use tandem_formats::DType;
use tandem_formats::blocks::{UnsupportedTarget, dequantize, first_non_finite, quantize};
use tandem_testkit::{Rng, run_python};
use tempfile::tempdir;

/// argv: folder, then names of types; for each reads NAME.in and writes NAME.out.
const DEQUANTIZE: &str = r"
import sys, numpy, gguf
folder, names = sys.argv[1], sys.argv[2:]
for name in names:
    kind = gguf.GGMLQuantizationType[name.upper()]
    data = numpy.fromfile(f'{folder}/{name}.in', dtype=numpy.uint8)
    gguf.quants.dequantize(data.reshape(1, -1), kind).astype('<f4').tofile(f'{folder}/{name}.out')
";

/// argv: folder, then names of types; for each quantizes the floats in `weights`.
const QUANTIZE: &str = r"
import sys, numpy, gguf
folder, names = sys.argv[1], sys.argv[2:]
weights = numpy.fromfile(f'{folder}/weights', dtype='<f4').reshape(1, -1)
for name in names:
    gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name.upper()]).tofile(f'{folder}/{name}.out')
";

fn to_bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.len() / dtype.block_bytes();
    let mut weights = vec![f32::NAN; blocks * dtype.block_len()];
    dequantize(dtype, bytes, &mut weights);
    weights
}

fn encoded(dtype: DType, weights: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; dtype.bytes_for(weights.len()).unwrap()];
    quantize(dtype, weights, &mut bytes).unwrap();
    bytes
}

/// Where each format keeps its f16 numbers; stated here anew so that the crate's own table is checked too.
fn f16_positions(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q6_K => &[208],
        _ => &[0],
    }
}

/// Blocks of random, all-zero and all-one bits, with scales that are random, zero, subnormal and the largest.
fn test_blocks(dtype: DType) -> Vec<u8> {
    let scales = [0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x3c00];
    let mut rng = Rng::new(u64::from(dtype.ggml_id()));
    let mut bytes = vec![0; 300 * dtype.block_bytes()];
    for (i, block) in bytes.chunks_mut(dtype.block_bytes()).enumerate() {
        match i % 3 {
            0 if i < 60 => block.fill(0xff),
            1 if i < 60 => block.fill(0),
            _ => rng.fill(block),
        }
        for (j, &at) in f16_positions(dtype).iter().enumerate() {
            let random = rng.next_u64() as u16;
            let finite = if random & 0x7c00 == 0x7c00 { random ^ 0x0400 } else { random };
            let scale = scales.get(i / 3 / (1 + 8 * j)).copied().unwrap_or(finite);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn dequantized_weights_equal_those_of_the_python_package_bit_by_bit() {
    let dir = tempdir().unwrap();
    let types: Vec<DType> = DType::ALL.into_iter().filter(|t| t.is_quantized()).collect();
    assert_eq!(types.len(), 8);
    for dtype in &types {
        fs::write(dir.path().join(format!("{dtype}.in")), test_blocks(*dtype)).unwrap();
    }
    run_on(dir.path(), DEQUANTIZE, &types);
    for dtype in types {
        let expected = from_bytes(&fs::read(dir.path().join(format!("{dtype}.out"))).unwrap());
        let ours = decoded(dtype, &test_blocks(dtype));
        assert_eq!(ours.len(), expected.len(), "{dtype}");
        for (i, (a, b)) in ours.iter().zip(&expected).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{dtype} weight {i}: {a} is not {b}");
        }
    }
}

fn run_on(dir: &Path, script: &str, types: &[DType]) {
    let names = types.iter().map(|t| t.name());
    let args: Vec<&str> = std::iter::once(dir.to_str().unwrap()).chain(names).collect();
    run_python(script, &args);
}

/// Blocks of 32 weights: normal, heavy-tailed and uniform ones of many magnitudes, ties, constants, zeros.
fn test_weights() -> Vec<f32> {
    let mut rng = Rng::new(42);
    let mut weights = Vec::new();
    for magnitude in [1e-7, 3e-6, 1e-4, 0.02, 1.0, 3e3] {
        for _ in 0..300 {
            weights.extend((0..32).map(|_| rng.normal() * magnitude));
            weights.extend((0..32).map(|_| rng.normal().powi(3) * magnitude));
            weights.extend((0..32).map(|_| (rng.uniform() - 0.5) * magnitude));
        }
    }
    weights.extend((0..32).map(|i| (i as f32 - 15.5) / 2.0));
    weights.extend((0..32).map(|i| i as f32 * 127.0 / 62.0));
    weights.extend([0.25; 32]);
    weights.extend([-3.0; 32]);
    weights.extend([0.0; 32]);
    weights.extend((0..32).map(|i| if i == 5 { -1.0 } else { 0.0 }));
    weights
}

#[test]
fn quantized_floats_and_q8_0_equal_those_of_the_python_package() {
    let dir = tempdir().unwrap();
    let weights = test_weights();
    fs::write(dir.path().join("weights"), to_bytes(&weights)).unwrap();
    let types = [DType::F32, DType::F16, DType::BF16, DType::Q8_0];
    run_on(dir.path(), QUANTIZE, &types);
    for dtype in types {
        let expected = fs::read(dir.path().join(format!("{dtype}.out"))).unwrap();
        let ours = encoded(dtype, &weights);
        let differing = ours.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!((ours.len(), differing), (expected.len(), None), "{dtype}");
    }
}

fn squared_errors(weights: &[f32], decoded: &[f32]) -> Vec<f64> {
    let error = |(w, d): (&f32, &f32)| (f64::from(*w) - f64::from(*d)).powi(2);
    weights
        .chunks(32)
        .zip(decoded.chunks(32))
        .map(|(w, d)| w.iter().zip(d).map(error).sum())
        .collect()
}

#[test]
fn no_q4_0_block_is_worse_than_under_the_plain_rule_and_gaussian_ones_are_better() {
    let dir = tempdir().unwrap();
    let mut rng = Rng::new(3);
    let mut weights: Vec<f32> = (0..32 * 4096).map(|_| rng.normal() * 0.02).collect();
    let gaussian = weights.len() / 32;
    weights.extend(test_weights());
    fs::write(dir.path().join("weights"), to_bytes(&weights)).unwrap();
    run_on(dir.path(), QUANTIZE, &[DType::Q4_0]);

    let plain = fs::read(dir.path().join("q4_0.out")).unwrap();
    let plain = squared_errors(&weights, &decoded(DType::Q4_0, &plain));
    let ours = squared_errors(&weights, &decoded(DType::Q4_0, &encoded(DType::Q4_0, &weights)));
    for (i, (ours, plain)) in ours.iter().zip(&plain).enumerate() {
        assert!(*ours <= plain * (1.0 + 1e-5), "block {i}: {ours} is more than {plain}");
    }
    let total = |errors: &[f64]| errors[..gaussian].iter().sum::<f64>();
    let ratio = total(&ours) / total(&plain);
    assert!(ratio < 0.9, "squared error of Gaussian weights is {ratio} of the plain rule's");
}

#[test]
fn q4_0_restores_weights_that_it_can_represent() {
    for scale in [0.5f32, -0.5, 2f32.powi(-24), 1024.0] {
        let weights: Vec<f32> = (0..32).map(|i| (i % 16 - 8) as f32 * scale).collect();
        assert_eq!(decoded(DType::Q4_0, &encoded(DType::Q4_0, &weights)), weights, "scale {scale}");
    }
}

#[test]
fn q4_0_stays_finite_at_the_ends_of_the_range() {
    for magnitude in [f32::MAX, 1e30, 6e5, 5e-8, 2e-8, 1e-20, f32::MIN_POSITIVE, 1e-45] {
        let weights: Vec<f32> =
            (0..32).map(|i| if i % 3 == 0 { -magnitude } else { magnitude / 2.0 }).collect();
        let block = encoded(DType::Q4_0, &weights);
        assert_eq!(first_non_finite(DType::Q4_0, &block), None, "magnitude {magnitude}");
        let signs_kept =
            decoded(DType::Q4_0, &block).iter().zip(&weights).all(|(d, w)| d * w >= 0.0);
        assert!(signs_kept, "magnitude {magnitude}");
    }
    let zeros = decoded(DType::Q4_0, &encoded(DType::Q4_0, &[0.0; 32]));
    assert!(zeros.iter().all(|&w| w == 0.0));
}

#[test]
fn weights_that_are_not_finite_do_not_panic() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut weights = [1.0; 32];
        weights[7] = bad;
        for dtype in [DType::Q4_0, DType::Q8_0] {
            assert_eq!(encoded(dtype, &weights).len(), dtype.block_bytes());
        }
    }
}

#[test]
fn floats_survive_a_round_trip_and_specials_stay_special() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let weights = [0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(
            to_bytes(&decoded(dtype, &encoded(dtype, &weights))),
            to_bytes(&weights),
            "{dtype}"
        );
        assert!(decoded(dtype, &encoded(dtype, &[f32::NAN]))[0].is_nan(), "{dtype}");
    }
}

#[test]
fn first_non_finite_finds_floats() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1, 511, 512, 1029] {
                let mut weights = vec![-0.75; 1030];
                assert_eq!(first_non_finite(dtype, &encoded(dtype, &weights)), None);
                weights[at] = bad;
                assert_eq!(
                    first_non_finite(dtype, &encoded(dtype, &weights)),
                    Some(at),
                    "{dtype} {bad}"
                );
                weights[1029] = bad;
                assert_eq!(
                    first_non_finite(dtype, &encoded(dtype, &weights)),
                    Some(at),
                    "{dtype} {bad}"
                );
            }
        }
    }
}

#[test]
fn first_non_finite_finds_blocks() {
    for dtype in DType::ALL.into_iter().filter(|t| t.is_quantized()) {
        let good = test_blocks(dtype);
        assert_eq!(first_non_finite(dtype, &good), None, "{dtype}");
        for &at in f16_positions(dtype) {
            for bad in [0x7c00u16, 0xfc00, 0x7e00] {
                let mut bytes = good.clone();
                bytes[17 * dtype.block_bytes() + at..][..2].copy_from_slice(&bad.to_le_bytes());
                assert_eq!(
                    first_non_finite(dtype, &bytes),
                    Some(17 * dtype.block_len()),
                    "{dtype}"
                );
            }
        }
    }
}

#[test]
fn other_targets_are_refused_by_name() {
    let error = quantize(DType::Q4_K, &[0.0; 256], &mut [0; 144]).unwrap_err();
    assert_eq!(error, UnsupportedTarget(DType::Q4_K));
    assert_eq!(
        error.to_string(),
        "cannot quantize to q4_k; possible are f32, f16, bf16, q4_0, q8_0"
    );
}

#[test]
#[should_panic(expected = "buffer of 17 bytes for 32 weights of q4_0")]
fn buffers_that_do_not_agree_panic() {
    dequantize(DType::Q4_0, &[0; 17], &mut [0.0; 32]);
}

#[test]
fn type_names_and_numbers_read_back() {
    for dtype in DType::ALL {
        assert_eq!(dtype.name().to_uppercase().parse(), Ok(dtype));
        assert_eq!(DType::from_ggml_id(dtype.ggml_id()), Some(dtype));
    }
    assert!(
        "q3_k".parse::<DType>().unwrap_err().starts_with("unknown type `q3_k`; known: f32, f16, ")
    );
}
