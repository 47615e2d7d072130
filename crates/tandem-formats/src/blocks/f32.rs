//! F32: IEEE 754 binary32, little-endian.

pub(super) fn decode(src: &[u8], dst: &mut [f32]) {
    let (src, _) = src.as_chunks::<4>();
    src.iter().zip(dst).for_each(|(bytes, x)| *x = f32::from_le_bytes(*bytes));
}

pub(super) fn encode(src: &[f32], dst: &mut [u8]) {
    let (dst, _) = dst.as_chunks_mut::<4>();
    src.iter().zip(dst).for_each(|(x, bytes)| *bytes = x.to_le_bytes());
}
