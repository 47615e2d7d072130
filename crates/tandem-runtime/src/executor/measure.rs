//! What the CPU could do at most.

use tandem_cpu::measure::{int8_peak, read_bandwidth};
use tandem_memory::{AlignedBuffer, MemoryError};

use super::Executor;
use crate::bench::median;
use crate::error::Result;

/// Bytes below which caches may hold a model.
const SMALL_MODEL: usize = 256 << 20;

impl Executor {
    /// Bytes per second that so many threads of the team read from memory: the middle of three passes over the model's
    /// weights (1 GiB of them at most), for the better of two ways of reading. Of a small model, which caches may hold,
    /// over memory taken for this.
    ///
    /// # Errors
    /// Where memory to read cannot be had.
    pub fn read_bandwidth(&self, threads: usize) -> Result<f64> {
        let measured =
            |memory: &[u64]| self.team().in_turn(threads, || read_bandwidth(&self.cpu, memory));
        if self.model.n_bytes() >= SMALL_MODEL {
            let words = self.model.words();
            return Ok(measured(&words[..words.len().min((1 << 30) / size_of::<u64>())]));
        }
        let mut memory = AlignedBuffer::zeroed(SMALL_MODEL).map_err(MemoryError::from)?;
        memory.advise_huge_pages();
        // Pages that were never written are all the same page of zeros.
        memory.fill(1);
        Ok(measured(memory.typed()))
    }

    /// Operations per second that so many threads of the team can do on 8-bit numbers: see [`int8_peak`].
    pub fn int8_peak(&self, threads: usize) -> f64 {
        let rates = || (0..3).map(|_| int8_peak(&self.cpu)).collect::<Vec<f64>>();
        median(&self.team().in_turn(threads, rates))
    }
}
