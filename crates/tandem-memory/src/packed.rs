//! The packed layout of 4-bit and 8-bit matrices: one arrangement in memory that CPU and GPU both read at full
//! speed.
//!
//! # Why
//! A file keeps a row's weights together, each block of 32 with its scale in front: blocks of 18 or 34 bytes, so
//! nothing is aligned, and one row at a time fills no vector without adding its lanes up at the end. Here 16 rows
//! lie side by side. A vector lane (or a GPU lane) is a row, sums never cross lanes, and what one load brings is
//! what one multiply instruction takes: 4 consecutive columns of 8 rows in 32 bytes for AVX2, of 16 rows in 64
//! bytes for AVX-512, of one row in 4 bytes for each lane of a GPU subgroup of 16.
//!
//! # Layout
//! A matrix of `rows x cols` has `T = ceil(rows / 16)` tiles of 16 rows and `B = cols / 32` blocks of columns.
//! Quants come first, scales after them, both ordered by tile, then block:
//!
//! ```text
//! quants  [tile T][block B][group G][row 16][4 bytes]     256 B (q4_0) or 512 B (q8_0) for a tile's block
//! scales  [tile T][block B][row 16] f16, little-endian    32 B for a tile's block
//! ```
//!
//! Row `r` of the matrix is row `r % 16` of tile `r / 16`; column `c` is column `c % 32` of block `c / 32`.
//!
//! - q8_0, `G = 8`: byte `i` of group `g` is the signed quant of column `4 g + i`.
//! - q4_0, `G = 4`: the low half of byte `i` of group `g` is the quant of column `4 g + i`, the high half that of
//!   column `16 + 4 g + i`. Quants have an offset of 8, as in the file.
//!
//! A weight is `scale * quant` (q8_0) or `scale * (quant - 8)` (q4_0): exactly the file's weights, as packing only
//! moves bytes. Rows that fill up the last tile have scale 0 and quants that stand for 0. With the quants on a
//! 64-byte boundary everything in the layout is aligned to its own size.

use std::ops::Range;

use half::f16;
use half::slice::HalfBitsSliceExt;
use tandem_formats::DType;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Columns of a block: they share a scale.
pub const BLOCK_COLS: usize = 32;

/// Bytes of a block's scales in a tile.
const SCALE_BYTES: usize = TILE_ROWS * size_of::<f16>();
/// Bytes of the scale in front of a block in the file.
const HEAD: usize = size_of::<f16>();
/// Bytes of a row in a group: what a lane of a vector holds.
const LANE: usize = 4;

/// Encodings that have a packed form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PackedType {
    /// 4-bit quants with offset 8.
    Q4_0,
    /// Signed 8-bit quants.
    Q8_0,
}

impl PackedType {
    /// The packed form of an encoding, if it has one.
    pub const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::Q4_0 => Some(Self::Q4_0),
            DType::Q8_0 => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// The encoding that it packs.
    pub const fn dtype(self) -> DType {
        match self {
            Self::Q4_0 => DType::Q4_0,
            Self::Q8_0 => DType::Q8_0,
        }
    }

    /// Bytes of a block's quants in a tile.
    pub const fn quant_bytes(self) -> usize {
        TILE_ROWS * (self.dtype().block_bytes() - HEAD)
    }

    /// A group's quants that stand for weights of 0.
    const fn zero(self) -> u8 {
        match self {
            Self::Q4_0 => 0x88,
            Self::Q8_0 => 0,
        }
    }
}

/// The shape of a packed matrix, and so the place of everything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedLayout {
    kind: PackedType,
    rows: usize,
    cols: usize,
}

impl PackedLayout {
    /// The layout of a matrix, or `None` where a row is no whole number of blocks.
    pub const fn new(kind: PackedType, rows: usize, cols: usize) -> Option<Self> {
        if cols == 0 || !cols.is_multiple_of(BLOCK_COLS) {
            return None;
        }
        Some(Self { kind, rows, cols })
    }

    /// Encoding.
    pub const fn kind(&self) -> PackedType {
        self.kind
    }

    /// Rows, without those that fill up the last tile.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Tiles.
    pub const fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Blocks of a row.
    pub const fn blocks(&self) -> usize {
        self.cols / BLOCK_COLS
    }

    /// Bytes of a tile's quants.
    pub const fn tile_quant_bytes(&self) -> usize {
        self.blocks() * self.kind.quant_bytes()
    }

    /// Bytes of a tile's scales.
    pub const fn tile_scale_bytes(&self) -> usize {
        self.blocks() * SCALE_BYTES
    }

    /// Bytes of all quants, which come first: where the scales begin.
    pub const fn quant_bytes(&self) -> usize {
        self.tiles() * self.tile_quant_bytes()
    }

    /// Bytes of the matrix.
    pub const fn n_bytes(&self) -> usize {
        self.tiles() * (self.tile_quant_bytes() + self.tile_scale_bytes())
    }

    /// Bytes of a row as it is in a file.
    pub const fn file_row_bytes(&self) -> usize {
        self.blocks() * self.kind.dtype().block_bytes()
    }

    /// Packs rows of a file into tiles. The last tile is filled up where the rows do not fill it.
    ///
    /// # Panics
    /// When `raw` is no whole number of rows, or `quants` and `scales` are not the size of their tiles.
    pub fn pack_tiles(&self, raw: &[u8], quants: &mut [u8], scales: &mut [u8]) {
        let row_bytes = self.file_row_bytes();
        assert!(raw.len().is_multiple_of(row_bytes), "{} bytes of rows of {row_bytes}", raw.len());
        let tiles = (raw.len() / row_bytes).div_ceil(TILE_ROWS);
        assert_eq!(quants.len(), tiles * self.tile_quant_bytes(), "quants of {tiles} tiles");
        assert_eq!(scales.len(), tiles * self.tile_scale_bytes(), "scales of {tiles} tiles");
        if !raw.len().is_multiple_of(TILE_ROWS * row_bytes) {
            let (quants_end, scales_end) = (self.tile_quant_bytes(), self.tile_scale_bytes());
            quants[(tiles - 1) * quants_end..].fill(self.kind.zero());
            scales[(tiles - 1) * scales_end..].fill(0);
        }
        let tiles = quants
            .chunks_exact_mut(self.tile_quant_bytes())
            .zip(scales.chunks_exact_mut(self.tile_scale_bytes()));
        for (raw, (quants, scales)) in raw.chunks(TILE_ROWS * row_bytes).zip(tiles) {
            self.pack_tile(raw, quants, scales);
        }
    }

    fn pack_tile(&self, raw: &[u8], quants: &mut [u8], scales: &mut [u8]) {
        let block_bytes = self.kind.dtype().block_bytes();
        for (row, raw) in raw.chunks_exact(self.file_row_bytes()).enumerate() {
            let blocks = quants
                .chunks_exact_mut(self.kind.quant_bytes())
                .zip(scales.chunks_exact_mut(SCALE_BYTES));
            for (raw, (quants, scales)) in raw.chunks_exact(block_bytes).zip(blocks) {
                scales[row * HEAD..][..HEAD].copy_from_slice(&raw[..HEAD]);
                let lanes = quants.as_chunks_mut::<LANE>().0;
                for (group, bytes) in raw[HEAD..].as_chunks::<LANE>().0.iter().enumerate() {
                    lanes[group * TILE_ROWS + row] = *bytes;
                }
            }
        }
    }
}

/// A packed matrix in memory.
#[derive(Clone, Copy, Debug)]
pub struct PackedMatrix<'a> {
    layout: PackedLayout,
    quants: &'a [u8],
    scales: &'a [f16],
}

impl<'a> PackedMatrix<'a> {
    /// A matrix over its bytes, quants and then scales.
    ///
    /// # Panics
    /// When there are not as many bytes as the layout says, or they do not begin at an even address.
    pub fn new(layout: PackedLayout, bytes: &'a [u8]) -> Self {
        assert_eq!(bytes.len(), layout.n_bytes(), "bytes of {layout:?}");
        let (quants, scales) = bytes.split_at(layout.quant_bytes());
        let bits: &[u16] = bytemuck::cast_slice(scales);
        Self { layout, quants, scales: bits.reinterpret_cast() }
    }

    /// The rows from `first` on, as a matrix of its own.
    ///
    /// # Panics
    /// When that is in the middle of a tile, or beyond the last row.
    #[must_use]
    pub fn rows_from(&self, first: usize) -> Self {
        let tile = first / TILE_ROWS;
        assert!(first.is_multiple_of(TILE_ROWS) && first <= self.rows(), "rows from {first} on");
        let (quants, scales) = self.tiles(tile..self.layout.tiles());
        Self { layout: PackedLayout { rows: self.rows() - first, ..self.layout }, quants, scales }
    }

    /// The shape.
    pub fn layout(&self) -> PackedLayout {
        self.layout
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.layout.cols
    }

    /// A tile's quants, `[block][group][row][4 bytes]`, and scales, `[block][row]`.
    ///
    /// # Panics
    /// When there is no such tile.
    pub fn tile(&self, index: usize) -> (&'a [u8], &'a [f16]) {
        self.tiles(index..index + 1)
    }

    /// Tiles that follow each other, as [`Self::tile`].
    ///
    /// # Panics
    /// When there are no such tiles.
    pub fn tiles(&self, range: Range<usize>) -> (&'a [u8], &'a [f16]) {
        let (quants, scales) =
            (self.layout.tile_quant_bytes(), self.layout.tile_scale_bytes() / size_of::<f16>());
        let Range { start, end } = range;
        (&self.quants[start * quants..end * quants], &self.scales[start * scales..end * scales])
    }

    /// Decodes one row, as an embedding table needs.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not as long as one.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.layout.cols, "weights of a row");
        let dtype = self.layout.kind.dtype();
        // Large enough for a block of either encoding.
        let mut raw = [0; HEAD + BLOCK_COLS];
        let raw = &mut raw[..dtype.block_bytes()];
        for (block, out) in out.chunks_exact_mut(BLOCK_COLS).enumerate() {
            self.unpack_block(row, block, raw);
            tandem_formats::blocks::dequantize(dtype, raw, out);
        }
    }

    /// One row as it is in a file.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not as long as one.
    pub fn unpack_row(&self, row: usize, out: &mut [u8]) {
        assert_eq!(out.len(), self.layout.file_row_bytes(), "bytes of a row");
        let block_bytes = self.layout.kind.dtype().block_bytes();
        for (block, out) in out.chunks_exact_mut(block_bytes).enumerate() {
            self.unpack_block(row, block, out);
        }
    }

    fn unpack_block(&self, row: usize, block: usize, out: &mut [u8]) {
        assert!(row < self.layout.rows, "row {row} of {}", self.layout.rows);
        let (quants, scales) = self.tile(row / TILE_ROWS);
        let row = row % TILE_ROWS;
        out[..HEAD].copy_from_slice(&scales[block * TILE_ROWS + row].to_le_bytes());
        let quants = &quants[block * self.layout.kind.quant_bytes()..];
        let lanes = quants.as_chunks::<LANE>().0.iter().skip(row).step_by(TILE_ROWS);
        for (bytes, lane) in out[HEAD..].as_chunks_mut::<LANE>().0.iter_mut().zip(lanes) {
            *bytes = *lane;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AlignedBuffer;
    use tandem_testkit::Rng;

    const KINDS: [PackedType; 2] = [PackedType::Q4_0, PackedType::Q8_0];

    fn random(layout: PackedLayout, seed: u64) -> Vec<u8> {
        let mut raw = vec![0; layout.rows * layout.file_row_bytes()];
        Rng::new(seed).fill(&mut raw);
        raw
    }

    fn pack(layout: PackedLayout, raw: &[u8]) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::zeroed(layout.n_bytes()).unwrap();
        // What was there before must not matter.
        buffer.fill(0xa5);
        let (quants, scales) = buffer.split_at_mut(layout.quant_bytes());
        layout.pack_tiles(raw, quants, scales);
        buffer
    }

    #[test]
    fn rows_come_back_to_the_last_bit() {
        for kind in KINDS {
            for (rows, cols) in [(1, 32), (15, 64), (16, 96), (17, 32), (448, 448), (5, 4096)] {
                let layout = PackedLayout::new(kind, rows, cols).unwrap();
                let raw = random(layout, (rows * cols) as u64);
                let buffer = pack(layout, &raw);
                let matrix = PackedMatrix::new(layout, &buffer);
                let mut row = vec![0; layout.file_row_bytes()];
                for (index, raw) in raw.chunks_exact(row.len()).enumerate() {
                    matrix.unpack_row(index, &mut row);
                    assert_eq!(row, raw, "{kind:?} {rows} x {cols}, row {index}");
                }
            }
        }
    }

    /// The documented place of every quant and scale, computed here a second time from the documentation.
    #[test]
    fn everything_is_where_the_documentation_says() {
        for kind in KINDS {
            let layout = PackedLayout::new(kind, 35, 96).unwrap();
            let raw = random(layout, 3);
            let buffer = pack(layout, &raw);
            let (tile_bytes, groups) = if kind == PackedType::Q4_0 { (256, 4) } else { (512, 8) };
            assert_eq!((layout.tiles(), layout.blocks()), (3, 3));
            assert_eq!(buffer.len(), 9 * (tile_bytes + 32));
            for (row, raw) in raw.chunks_exact(layout.file_row_bytes()).enumerate() {
                for col in 0..96 {
                    let (tile, block) = (row / 16, col / 32);
                    let file_block = &raw[block * kind.dtype().block_bytes()..];
                    let scale_at = 9 * tile_bytes + ((tile * 3 + block) * 16 + row % 16) * 2;
                    assert_eq!(buffer[scale_at..scale_at + 2], file_block[..2]);
                    let group = col % 32 / 4 % groups;
                    let at = (((tile * 3 + block) * groups + group) * 16 + row % 16) * 4 + col % 4;
                    let (packed, expected) = match kind {
                        PackedType::Q8_0 => (buffer[at], file_block[2 + col % 32]),
                        PackedType::Q4_0 if col % 32 < 16 => {
                            (buffer[at] & 15, file_block[2 + col % 32] & 15)
                        }
                        PackedType::Q4_0 => (buffer[at] >> 4, file_block[2 + col % 16] >> 4),
                    };
                    assert_eq!(packed, expected, "{kind:?} row {row}, column {col}");
                }
            }
        }
    }

    #[test]
    fn rows_that_fill_up_a_tile_are_zero() {
        for kind in KINDS {
            let layout = PackedLayout::new(kind, 17, 64).unwrap();
            let buffer = pack(layout, &random(layout, 4));
            let whole = PackedLayout { rows: 32, ..layout };
            let matrix = PackedMatrix::new(whole, &buffer);
            for row in 17..32 {
                assert!(
                    matrix.tile(1).1.chunks_exact(16).all(|scales| scales[row % 16].to_bits() == 0)
                );
                let mut raw = vec![0; layout.file_row_bytes()];
                matrix.unpack_row(row, &mut raw);
                let zeros = raw.chunks_exact(kind.dtype().block_bytes());
                assert!(zeros.flat_map(|b| &b[2..]).all(|&q| q == kind.zero()));
            }
        }
    }

    #[test]
    fn rows_from_a_tile_on_are_a_matrix() {
        for kind in KINDS {
            let layout = PackedLayout::new(kind, 40, 64).unwrap();
            let buffer = pack(layout, &random(layout, 6));
            let whole = PackedMatrix::new(layout, &buffer);
            for first in [0, 16, 32] {
                let part = whole.rows_from(first);
                assert_eq!(part.rows(), 40 - first);
                let mut rows = [vec![0; layout.file_row_bytes()], vec![0; layout.file_row_bytes()]];
                for row in 0..part.rows() {
                    part.unpack_row(row, &mut rows[0]);
                    whole.unpack_row(first + row, &mut rows[1]);
                    assert_eq!(rows[0], rows[1], "{kind:?} row {row} from {first} on");
                }
            }
        }
    }

    #[test]
    fn decodes_what_the_file_means() {
        for kind in KINDS {
            let layout = PackedLayout::new(kind, 40, 64).unwrap();
            let mut rng = Rng::new(5);
            let weights: Vec<f32> = (0..40 * 64).map(|_| rng.normal()).collect();
            let mut raw = vec![0; 40 * layout.file_row_bytes()];
            tandem_formats::blocks::quantize(kind.dtype(), &weights, &mut raw).unwrap();
            let mut expected = vec![0.0; weights.len()];
            tandem_formats::blocks::dequantize(kind.dtype(), &raw, &mut expected);
            let buffer = pack(layout, &raw);
            let mut row = [0.0; 64];
            for (index, expected) in expected.chunks_exact(64).enumerate() {
                PackedMatrix::new(layout, &buffer).decode_row(index, &mut row);
                assert_eq!(row, expected);
            }
        }
    }

    #[test]
    fn only_whole_blocks_and_two_encodings() {
        assert!(PackedLayout::new(PackedType::Q8_0, 4, 33).is_none());
        assert!(PackedLayout::new(PackedType::Q8_0, 4, 0).is_none());
        for dtype in DType::ALL {
            assert_eq!(
                PackedType::of(dtype).map(PackedType::dtype),
                match dtype {
                    DType::Q4_0 | DType::Q8_0 => Some(dtype),
                    _ => None,
                }
            );
        }
    }
}
