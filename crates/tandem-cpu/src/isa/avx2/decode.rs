//! Encoded weights to f32, 8 at a time.
//!
//! Only the encodings that models are mostly stored in; the others take the plain way. Every result is the exact
//! product of scale and quant, rounded once, as in the plain code.

use std::arch::x86_64::*;

use tandem_formats::DType;

/// Eight bf16 as f32: they are the upper halves.
///
/// # Safety
/// `bytes` must point to 16 readable bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn bf16x8(bytes: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    let halves = unsafe { _mm_loadu_si128(bytes.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}

/// Eight f16 as f32.
///
/// # Safety
/// `bytes` must point to 16 readable bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn f16x8(bytes: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.cast()) })
}

/// Eight f32.
///
/// # Safety
/// `bytes` must point to 32 readable bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn f32x8(bytes: *const u8) -> __m256 {
    // SAFETY: the caller's promise; the load needs no alignment.
    unsafe { _mm256_loadu_ps(bytes.cast()) }
}

/// A block of 32 quants with one scale.
pub(super) struct Block {
    /// The scale, in every lane.
    pub(super) scale: __m256,
    /// The quants in order, 8 a vector, as whole f32.
    pub(super) quants: [__m256; 4],
}

/// Four vectors from 32 signed bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen(low: __m128i, high: __m128i) -> [__m256; 4] {
    let widen = |bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    [widen(low), widen(_mm_srli_si128::<8>(low)), widen(high), widen(_mm_srli_si128::<8>(high))]
}

/// The f16 at the start of a block, in every lane.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn scale_of(block: &[u8]) -> __m256 {
    let bits = i16::from_le_bytes([block[0], block[1]]);
    _mm256_cvtph_ps(_mm_set1_epi16(bits))
}

/// Q8_0: an f16 scale, 32 signed bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn q8_0(block: &[u8; 34]) -> Block {
    // SAFETY: the quants are bytes 2 to 34 of the block.
    let (low, high) = unsafe {
        (
            _mm_loadu_si128(block.as_ptr().add(2).cast()),
            _mm_loadu_si128(block.as_ptr().add(18).cast()),
        )
    };
    Block { scale: scale_of(block), quants: widen(low, high) }
}

/// Q4_0: an f16 scale, 16 bytes whose low halves are quants 0 to 15 and whose high halves are 16 to 31, each 8
/// too large.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn q4_0(block: &[u8; 18]) -> Block {
    // SAFETY: the quants are bytes 2 to 18 of the block.
    let bytes = unsafe { _mm_loadu_si128(block.as_ptr().add(2).cast()) };
    let (mask, offset) = (_mm_set1_epi8(15), _mm_set1_epi8(8));
    let low = _mm_sub_epi8(_mm_and_si128(bytes, mask), offset);
    let high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(bytes), mask), offset);
    Block { scale: scale_of(block), quants: widen(low, high) }
}

/// Decodes `bytes` into `out`; false, with nothing done, where the encoding has no way of its own here.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> bool {
    if dtype.bytes_for(out.len()) != Some(bytes.len()) {
        return false;
    }
    match dtype {
        // SAFETY: 8 weights are 16 bytes.
        DType::BF16 => floats::<16>(bytes, out, |chunk| unsafe { bf16x8(chunk.as_ptr()) }),
        // SAFETY: 8 weights are 16 bytes.
        DType::F16 => floats::<16>(bytes, out, |chunk| unsafe { f16x8(chunk.as_ptr()) }),
        // SAFETY: 8 weights are 32 bytes.
        DType::F32 => floats::<32>(bytes, out, |chunk| unsafe { f32x8(chunk.as_ptr()) }),
        DType::Q8_0 => blocks::<34>(bytes, out, |block| q8_0(block)),
        DType::Q4_0 => blocks::<18>(bytes, out, |block| q4_0(block)),
        _ => return false,
    }
    true
}

/// Decodes plain floats, 8 of them in `BYTES` bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn floats<const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    load: impl Fn(&[u8; BYTES]) -> __m256,
) {
    let (chunks, rest) = bytes.as_chunks::<BYTES>();
    let (outs, out_rest) = out.as_chunks_mut::<8>();
    for (chunk, out) in chunks.iter().zip(outs) {
        // SAFETY: `out` is 8 numbers.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), load(chunk)) };
    }
    let mut padded = [0; BYTES];
    padded[..rest.len()].copy_from_slice(rest);
    let mut last = [0.0; 8];
    // SAFETY: `last` is 8 numbers.
    unsafe { _mm256_storeu_ps(last.as_mut_ptr(), load(&padded)) };
    out_rest.copy_from_slice(&last[..out_rest.len()]);
}

/// Decodes blocks of 32 weights, each of `BYTES` bytes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn blocks<const BYTES: usize>(bytes: &[u8], out: &mut [f32], load: impl Fn(&[u8; BYTES]) -> Block) {
    for (block, out) in bytes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let block = load(block);
        for (quants, out) in block.quants.iter().zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: `out` is 8 numbers.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(*quants, block.scale)) };
        }
    }
}
