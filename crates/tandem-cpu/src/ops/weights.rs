//! A matrix of weights in either form.

use std::ops::Range;

use tandem_memory::PackedMatrix;
use tandem_memory::packed::TILE_ROWS;

use super::MatrixRef;

/// A matrix of weights: in rows as in a file, or packed.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// Encoded rows; multiplied with activations in f32.
    Rows(MatrixRef<'a>),
    /// Packed tiles; multiplied with activations in 8 bits.
    Packed(PackedMatrix<'a>),
}

impl Weights<'_> {
    /// The rows from `first` on, as a matrix of its own.
    ///
    /// # Panics
    /// When that is beyond the last row or, of a packed matrix, in the middle of a tile.
    #[must_use]
    pub fn rows_from(self, first: usize) -> Self {
        match self {
            Self::Rows(matrix) => Self::Rows(matrix.row_range(first..matrix.rows)),
            Self::Packed(matrix) => Self::Packed(matrix.rows_from(first)),
        }
    }

    /// Rows: features of the output.
    pub fn rows(&self) -> usize {
        match self {
            Self::Rows(matrix) => matrix.rows,
            Self::Packed(matrix) => matrix.rows(),
        }
    }

    /// Columns: features of the input.
    pub fn cols(&self) -> usize {
        match self {
            Self::Rows(matrix) => matrix.cols,
            Self::Packed(matrix) => matrix.cols(),
        }
    }

    /// Bytes in memory.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Rows(matrix) => matrix.bytes.len(),
            Self::Packed(matrix) => matrix.layout().n_bytes(),
        }
    }

    /// Bytes of a row in memory: where rows are padded, in the mean.
    pub fn row_bytes(&self) -> usize {
        self.n_bytes() / self.rows().max(1)
    }

    /// Addresses of some rows, in whole tiles: of their scales, where those lie apart, and of the others.
    pub(super) fn addresses(&self, rows: Range<usize>) -> [Range<usize>; 2] {
        match self {
            Self::Rows(matrix) => [0..0, addresses(matrix.row_range(rows).bytes)],
            Self::Packed(matrix) => {
                let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
                let (quants, scales) = matrix.tiles(tiles);
                [addresses(scales), addresses(quants)]
            }
        }
    }

    /// Whether products take activations in 8 bits.
    pub fn is_packed(&self) -> bool {
        matches!(self, Self::Packed(_))
    }

    /// Decodes one row, as an embedding table needs.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not as long as one.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Rows(matrix) => matrix.decode_row(row, out),
            Self::Packed(matrix) => matrix.decode_row(row, out),
        }
    }
}

fn addresses<T>(memory: &[T]) -> Range<usize> {
    let Range { start, end } = memory.as_ptr_range();
    start.addr()..end.addr()
}

impl<'a> From<MatrixRef<'a>> for Weights<'a> {
    fn from(matrix: MatrixRef<'a>) -> Self {
        Self::Rows(matrix)
    }
}

impl<'a> From<PackedMatrix<'a>> for Weights<'a> {
    fn from(matrix: PackedMatrix<'a>) -> Self {
        Self::Packed(matrix)
    }
}
