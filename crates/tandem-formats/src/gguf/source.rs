//! Reading header fields from a stream whose length is known, with the field named when something is missing.

use std::fmt::Display;
use std::io::Read;
use std::path::Path;

use crate::{FormatError, Result};

/// A stream of `len` bytes of which `pos` have been read.
pub(super) struct Source<'a, R> {
    pub(super) path: &'a Path,
    input: &'a mut R,
    pos: u64,
    len: u64,
}

impl<'a, R: Read> Source<'a, R> {
    pub(super) fn new(path: &'a Path, input: &'a mut R, len: u64) -> Self {
        Self { path, input, pos: 0, len }
    }

    pub(super) fn pos(&self) -> u64 {
        self.pos
    }

    pub(super) fn remaining(&self) -> u64 {
        self.len - self.pos
    }

    pub(super) fn error(
        &self,
        field: impl Display,
        expected: impl Display,
        found: impl Display,
    ) -> FormatError {
        FormatError::invalid(self.path, field, expected, found)
    }

    fn truncated(&self, field: impl Display, wanted: u64, left: u64) -> FormatError {
        self.error(
            field,
            format_args!("{wanted} bytes at offset {}", self.pos),
            format_args!("{left} bytes before the end of the file"),
        )
    }

    pub(super) fn array<const N: usize>(&mut self, field: impl Display) -> Result<[u8; N]> {
        if self.remaining() < N as u64 {
            return Err(self.truncated(field, N as u64, self.remaining()));
        }
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|e| {
            FormatError::io(
                self.path,
                format_args!("cannot read {field} at offset {}", self.pos),
                e,
            )
        })?;
        self.pos += N as u64;
        Ok(bytes)
    }

    /// `n` bytes. Memory grows with the bytes that really come, so that a false length costs nothing.
    pub(super) fn bytes(&mut self, n: u64, field: impl Display) -> Result<Vec<u8>> {
        if self.remaining() < n {
            return Err(self.truncated(field, n, self.remaining()));
        }
        let mut bytes = Vec::new();
        self.input.by_ref().take(n).read_to_end(&mut bytes).map_err(|e| {
            FormatError::io(
                self.path,
                format_args!("cannot read {field} at offset {}", self.pos),
                e,
            )
        })?;
        if (bytes.len() as u64) < n {
            return Err(self.truncated(field, n, bytes.len() as u64));
        }
        self.pos += n;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, field: impl Display) -> Result<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: impl Display) -> Result<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A length-prefixed UTF-8 string.
    pub(super) fn string(&mut self, field: impl Display) -> Result<String> {
        let len = self.u64(format_args!("{field} length"))?;
        let start = self.pos;
        String::from_utf8(self.bytes(len, &field)?).map_err(|e| {
            let at = start + e.utf8_error().valid_up_to() as u64;
            self.error(field, "UTF-8 text", format_args!("an invalid byte at offset {at}"))
        })
    }

    /// `count` numbers of `N` bytes each.
    pub(super) fn numbers<const N: usize, T>(
        &mut self,
        count: u64,
        field: impl Display,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let n = count.saturating_mul(N as u64);
        let bytes = self.bytes(n, field)?;
        Ok(bytes.as_chunks().0.iter().copied().map(decode).collect())
    }
}
