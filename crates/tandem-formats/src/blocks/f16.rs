//! F16: IEEE 754 binary16, little-endian.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Weights converted at a time: through a small array, since the bytes of a file need not be aligned.
const STRETCH: usize = 256;

pub(super) fn decode(src: &[u8], dst: &mut [f32]) {
    let (src, _) = src.as_chunks::<2>();
    let mut buffer = [f16::ZERO; STRETCH];
    for (src, dst) in src.chunks(STRETCH).zip(dst.chunks_mut(STRETCH)) {
        let buffer = &mut buffer[..src.len()];
        buffer.iter_mut().zip(src).for_each(|(x, bytes)| *x = f16::from_le_bytes(*bytes));
        buffer.convert_to_f32_slice(dst);
    }
}

pub(super) fn encode(src: &[f32], dst: &mut [u8]) {
    let (dst, _) = dst.as_chunks_mut::<2>();
    let mut buffer = [f16::ZERO; STRETCH];
    for (src, dst) in src.chunks(STRETCH).zip(dst.chunks_mut(STRETCH)) {
        let buffer = &mut buffer[..src.len()];
        buffer.convert_from_f32_slice(src);
        dst.iter_mut().zip(buffer).for_each(|(bytes, x)| *bytes = x.to_le_bytes());
    }
}
