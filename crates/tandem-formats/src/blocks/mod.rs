//! Weights to and from `f32`, one file per encoding.
//!
//! The layouts are GGML's. Each file here describes one of them and holds its arithmetic, in the order of operations
//! that GGML and its Python package use, so that results agree to the last bit. Loops run over arrays of fixed
//! length: that is what lets the compiler turn them into vector instructions without `unsafe`.

mod bf16;
mod f16;
mod f32;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

use crate::DType;

/// A [`DType`] that this crate reads but does not produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot quantize to {0}; possible are f32, f16, bf16, q4_0, q8_0")]
pub struct UnsupportedTarget(pub DType);

/// Decodes whole blocks to `f32`.
///
/// # Panics
/// When `src` is not the encoding of exactly `dst.len()` weights: the caller mixed up its buffers.
pub fn dequantize(dtype: DType, src: &[u8], dst: &mut [f32]) {
    check_lengths(dtype, src.len(), dst.len());
    match dtype {
        DType::F32 => f32::decode(src, dst),
        DType::F16 => f16::decode(src, dst),
        DType::BF16 => bf16::decode(src, dst),
        DType::Q4_0 => each_block(src, dst, q4_0::decode),
        DType::Q4_1 => each_block(src, dst, q4_1::decode),
        DType::Q5_0 => each_block(src, dst, q5_0::decode),
        DType::Q5_1 => each_block(src, dst, q5_1::decode),
        DType::Q8_0 => each_block(src, dst, q8_0::decode),
        DType::Q4_K => each_block(src, dst, q4_k::decode),
        DType::Q5_K => each_block(src, dst, q5_k::decode),
        DType::Q6_K => each_block(src, dst, q6_k::decode),
    }
}

/// Encodes weights: floats rounded to nearest even, blocks as described in their files.
///
/// Weights should be finite; others give blocks without meaning. Ask [`first_non_finite`] before.
///
/// # Errors
/// When this crate does not produce `dtype`.
///
/// # Panics
/// When `dst` is not the size of exactly `src.len()` weights: the caller mixed up its buffers.
pub fn quantize(dtype: DType, src: &[f32], dst: &mut [u8]) -> Result<(), UnsupportedTarget> {
    check_lengths(dtype, dst.len(), src.len());
    match dtype {
        DType::F32 => f32::encode(src, dst),
        DType::F16 => f16::encode(src, dst),
        DType::BF16 => bf16::encode(src, dst),
        DType::Q4_0 => to_each_block(src, dst, q4_0::encode),
        DType::Q8_0 => to_each_block(src, dst, q8_0::encode),
        _ => return Err(UnsupportedTarget(dtype)),
    }
    Ok(())
}

/// The index of the first weight that is not finite; in block formats, of the first weight of the first block whose
/// scale or minimum is not finite. Bytes after the last whole block are not looked at.
pub fn first_non_finite(dtype: DType, src: &[u8]) -> Option<usize> {
    match dtype {
        DType::F32 => position::<4>(src, |b| is_special(u32::from_le_bytes(b), 0x7f80_0000)),
        DType::F16 => position::<2>(src, |b| is_special(u16::from_le_bytes(b), 0x7c00)),
        DType::BF16 => position::<2>(src, |b| is_special(u16::from_le_bytes(b), 0x7f80)),
        _ => {
            let factors = f16_factors(dtype);
            let bad = |block: &[u8]| {
                factors
                    .iter()
                    .any(|&at| is_special(u16::from_le_bytes([block[at], block[at + 1]]), 0x7c00))
            };
            let block = src.chunks_exact(dtype.block_bytes()).position(bad)?;
            Some(block * dtype.block_len())
        }
    }
}

/// Where a block keeps the f16 numbers its weights are multiplied with or shifted by.
fn f16_factors(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q6_K => &[208],
    }
}

/// Whether the exponent bits are all ones: infinity or not a number.
fn is_special<T: Copy + PartialEq + std::ops::BitAnd<Output = T>>(bits: T, exponent: T) -> bool {
    bits & exponent == exponent
}

/// Index of the first `N`-byte item that is `bad`, looking at long stretches without branches first.
fn position<const N: usize>(src: &[u8], bad: impl Fn([u8; N]) -> bool + Copy) -> Option<usize> {
    const STRETCH: usize = 512;
    let (items, _) = src.as_chunks::<N>();
    let any_bad = |stretch: &[[u8; N]]| stretch.iter().fold(false, |any, &item| any | bad(item));
    let stretch = items.chunks(STRETCH).position(any_bad)?;
    let start = stretch * STRETCH;
    items[start..].iter().position(|&item| bad(item)).map(|i| start + i)
}

fn check_lengths(dtype: DType, bytes: usize, weights: usize) {
    assert_eq!(
        dtype.bytes_for(weights),
        Some(bytes),
        "buffer of {bytes} bytes for {weights} weights of {dtype}"
    );
}

fn each_block<const BYTES: usize, const LEN: usize>(
    src: &[u8],
    dst: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (src, dst) = (src.as_chunks().0, dst.as_chunks_mut().0);
    src.iter().zip(dst).for_each(|(block, weights)| decode(block, weights));
}

fn to_each_block<const BYTES: usize, const LEN: usize>(
    src: &[f32],
    dst: &mut [u8],
    encode: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    let (src, dst) = (src.as_chunks().0, dst.as_chunks_mut().0);
    src.iter().zip(dst).for_each(|(weights, block)| encode(weights, block));
}

/// An f16 at byte `at` of a block, as f32.
fn f16_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}
