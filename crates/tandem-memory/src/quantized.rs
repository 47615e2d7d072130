//! Activations in 8 bits, as every device reads and writes them: the input of products with packed weights.
//!
//! Blocks of 32 along a token's row, each with an f32 scale that makes its largest magnitude 127. They lie as
//! `[plane][token][block]`: the first plane is the 8 bits, and where activations have 16, the second is 8 bits for what
//! the first leaves out.

use crate::packed::BLOCK_COLS;

/// 32 activations in 8 bits: `x = scale * value`. As many bytes as three loads of a GPU's lane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(16))]
pub struct QuantizedBlock {
    /// From -127 to 127.
    pub values: [i8; BLOCK_COLS],
    /// NaN where an activation was not finite: so is every result then.
    pub scale: f32,
    /// -8 times the sum of the values: what the offset of 4-bit weights adds to a dot product.
    pub offset: i32,
    /// That in two parts: of the first two values of every group of 4, and of the last two.
    pub halves: [i16; 2],
    /// Nothing.
    pub unused: u32,
}

impl QuantizedBlock {
    /// From the values, and the sums of the first two and of the last two values of every group of 4.
    pub fn new(values: [i8; BLOCK_COLS], scale: f32, sums: [i16; 2]) -> Self {
        let halves = sums.map(|sum| -8 * sum);
        let offset = halves.map(i32::from).iter().sum();
        Self { values, scale, offset, halves, unused: 0 }
    }

    /// What the values stand for.
    pub fn dequantize(&self) -> [f32; BLOCK_COLS] {
        self.values.map(|value| f32::from(value) * self.scale)
    }
}

const _: () =
    assert!(size_of::<QuantizedBlock>() == 48, "kernels count on 48 bytes, none of them padding");
