//! A matrix of weights, encoded as in the file that it came from.

use std::ops::Range;

use tandem_formats::DType;

/// A matrix of weights in any encoding, row-major; each row is made of whole blocks.
///
/// One row computes one output feature: `rows` is the number of outputs, `cols` that of inputs.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    /// Encoding of the weights.
    pub dtype: DType,
    /// Rows: features of the output.
    pub rows: usize,
    /// Columns: features of the input.
    pub cols: usize,
    /// The encoded weights.
    pub bytes: &'a [u8],
}

impl<'a> MatrixRef<'a> {
    /// A matrix over its bytes.
    ///
    /// # Panics
    /// When a row is no whole number of blocks, or the number of bytes is not that of such a matrix: shapes are
    /// checked where a file is read.
    pub fn new(dtype: DType, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        let row_bytes = dtype.bytes_for(cols).filter(|&bytes| bytes > 0);
        let expected = row_bytes.and_then(|row_bytes| row_bytes.checked_mul(rows));
        let found = bytes.len();
        assert_eq!(expected, Some(found), "bytes of a matrix of {rows} x {cols} {dtype}");
        Self { dtype, rows, cols, bytes }
    }

    /// Bytes of one encoded row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// Some of the rows, as a matrix of its own.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn row_range(&self, rows: Range<usize>) -> MatrixRef<'a> {
        let bytes = &self.bytes[rows.start * self.row_bytes()..rows.end * self.row_bytes()];
        MatrixRef { rows: rows.len(), bytes, ..*self }
    }

    /// One encoded row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes()..][..self.row_bytes()]
    }

    /// The weights of a row at `columns`, encoded. Both ends must be at a block's.
    pub(crate) fn row_part(&self, row: usize, columns: Range<usize>) -> &'a [u8] {
        let at = |column: usize| column / self.dtype.block_len() * self.dtype.block_bytes();
        &self.row(row)[at(columns.start)..at(columns.end)]
    }

    /// Decodes one row, as an embedding table needs.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not as long as one.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        tandem_formats::blocks::dequantize(self.dtype, self.row(row), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_where_the_rows_and_blocks_are() {
        let bytes = [0u8; 72];
        let matrix = MatrixRef::new(DType::Q4_0, 2, 64, &bytes);
        assert_eq!((matrix.row_bytes(), matrix.row(1).len()), (36, 36));
        assert_eq!(matrix.row_range(1..2).bytes.as_ptr(), bytes[36..].as_ptr());
        assert_eq!(matrix.row_part(1, 32..64).as_ptr(), bytes[54..].as_ptr());
    }

    #[test]
    fn decodes_a_row() {
        let bytes: Vec<u8> =
            [1.0f32, -2.0, 3.5, 0.25].iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut row = [0.0; 2];
        MatrixRef::new(DType::F32, 2, 2, &bytes).decode_row(1, &mut row);
        assert_eq!(row, [3.5, 0.25]);
    }

    #[test]
    fn wrong_sizes_are_noticed() {
        let bytes = [0u8; 72];
        for (dtype, rows, cols) in [
            (DType::Q4_0, 2, 33),
            (DType::Q4_0, 3, 64),
            (DType::F32, 18, 0),
            (DType::F32, usize::MAX, 4),
            (DType::F32, 1, usize::MAX),
        ] {
            let made = std::panic::catch_unwind(|| MatrixRef::new(dtype, rows, cols, &bytes).rows);
            assert!(made.is_err(), "{rows} x {cols} {dtype}");
        }
    }
}
