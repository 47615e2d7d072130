//! A matrix of weights, encoded as in the file that it came from.

use std::ops::Range;

use tandem_formats::DType;

/// Bytes that are not the matrix they are said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Rows must be made of whole blocks.
    #[error("matrix of {dtype}: expected columns in blocks of {}, found {cols}", dtype.block_len())]
    Columns {
        /// Encoding of the weights.
        dtype: DType,
        /// Weights of a row.
        cols: usize,
    },
    /// The number of bytes is wrong.
    #[error("matrix of {rows} x {cols} {dtype}: expected {expected:?} bytes, found {found}")]
    Bytes {
        /// Encoding of the weights.
        dtype: DType,
        /// Rows.
        rows: usize,
        /// Weights of a row.
        cols: usize,
        /// Bytes of such a matrix; `None` where there are too many to count.
        expected: Option<usize>,
        /// Bytes that there are.
        found: usize,
    },
}

/// A matrix of weights in any encoding, row-major; each row is made of whole blocks.
///
/// One row computes one output feature: `rows` is the number of outputs, `cols` that of inputs.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> MatrixRef<'a> {
    /// A matrix over its bytes.
    ///
    /// # Errors
    /// When a row is no whole number of blocks, or the number of bytes is not that of such a matrix.
    pub fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, ShapeError> {
        let Some(row_bytes) = dtype.bytes_for(cols).filter(|&bytes| bytes > 0) else {
            return Err(ShapeError::Columns { dtype, cols });
        };
        let expected = row_bytes.checked_mul(rows);
        if expected != Some(bytes.len()) {
            let found = bytes.len();
            return Err(ShapeError::Bytes { dtype, rows, cols, expected, found });
        }
        Ok(Self { dtype, rows, cols, row_bytes, bytes })
    }

    /// Encoding of the weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: features of the output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: features of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The encoded weights.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of one encoded row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Some of the rows, as a matrix of its own.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn row_range(&self, rows: Range<usize>) -> MatrixRef<'a> {
        let bytes = &self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes];
        MatrixRef { rows: rows.len(), bytes, ..*self }
    }

    /// One encoded row.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
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
        assert_eq!(out.len(), self.cols, "numbers of a row");
        tandem_formats::blocks::dequantize(self.dtype, self.row(row), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_its_size() {
        let bytes = [0u8; 72];
        let matrix = MatrixRef::new(DType::Q4_0, 2, 64, &bytes).unwrap();
        assert_eq!((matrix.row_bytes(), matrix.row(1).len()), (36, 36));
        assert_eq!(matrix.row_range(1..2).bytes().as_ptr(), bytes[36..].as_ptr());
        assert_eq!(matrix.row_part(1, 32..64).as_ptr(), bytes[54..].as_ptr());
        let message = MatrixRef::new(DType::Q4_0, 2, 33, &bytes).unwrap_err().to_string();
        assert_eq!(message, "matrix of q4_0: expected columns in blocks of 32, found 33");
        assert!(MatrixRef::new(DType::F32, 2, 0, &[]).is_err());
        assert!(MatrixRef::new(DType::Q4_0, 3, 64, &bytes).is_err());
        assert!(MatrixRef::new(DType::F32, usize::MAX, 4, &bytes).is_err());
    }
}
