//! BF16: the upper half of IEEE 754 binary32, little-endian.

use half::bf16;

pub(super) fn decode(src: &[u8], dst: &mut [f32]) {
    let (src, _) = src.as_chunks::<2>();
    let widen = |bytes: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16);
    src.iter().zip(dst).for_each(|(bytes, x)| *x = widen(*bytes));
}

pub(super) fn encode(src: &[f32], dst: &mut [u8]) {
    let (dst, _) = dst.as_chunks_mut::<2>();
    src.iter().zip(dst).for_each(|(x, bytes)| *bytes = bf16::from_f32(*x).to_le_bytes());
}
