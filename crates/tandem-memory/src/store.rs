//! All weights of a model in one page-aligned allocation.
//!
//! Weights are read with `pread` into memory of our own and not mapped: a GPU can then address the very same bytes,
//! and a file that changes or vanishes later does no harm. Matrices keep the file's encoding; norms, biases and the
//! router become f32, which is how they are used.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

use tandem_formats::{DType, blocks};
use tandem_model::catalogue::Component;
use tandem_model::{Checkpoint, Entry, TensorId};

use crate::{AlignedBuffer, MemoryError};

/// Tensors begin at multiples of this: a cache line, and what OpenCL asks of host pointers.
const TENSOR_ALIGN: usize = 64;

/// Bytes one thread reads at a time: large enough for the disk, small enough to share out and to fit a cache.
const READ_BYTES: usize = 2 << 20;

/// Weights of a model, ready to be computed with.
pub struct WeightStore {
    buffer: AlignedBuffer,
    tensors: HashMap<TensorId, Placed>,
}

/// Where a tensor lies in the store.
#[derive(Clone, Copy, Debug)]
struct Placed {
    dtype: DType,
    rows: usize,
    cols: usize,
    offset: usize,
    n_bytes: usize,
}

/// A tensor in the store: `rows x cols` weights in rows of whole blocks.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    /// Encoding.
    pub dtype: DType,
    /// Rows; 1 for vectors.
    pub rows: usize,
    /// Weights in a row.
    pub cols: usize,
    /// The encoded rows.
    pub bytes: &'a [u8],
}

/// Some rows of a tensor, to be read by one thread.
struct ReadTask<'a> {
    id: TensorId,
    source: Entry,
    dtype: DType,
    rows: Range<usize>,
    target: &'a mut [u8],
}

impl WeightStore {
    /// Reads all weights of `checkpoint` with `threads` threads. `progress` is told bytes of the file as they are
    /// done, from any thread.
    ///
    /// # Errors
    /// Where memory is short, where a file cannot be read, and where a weight is NaN or infinite.
    pub fn load(
        checkpoint: &Checkpoint,
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, MemoryError> {
        let (tensors, order, total) = place(checkpoint);
        let mut buffer = AlignedBuffer::zeroed(total)?;
        buffer.advise_huge_pages();
        let tasks = read_tasks(checkpoint, &tensors, &order, buffer.as_mut_slice());
        let queue = Mutex::new(tasks.into_iter());
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    let mut raw = Vec::new();
                    while let Some(task) = next(&queue, &failed) {
                        let bytes = (task.rows.len() * task.source.row_bytes()) as u64;
                        match read(checkpoint, task, &mut raw) {
                            Ok(()) => progress(bytes),
                            Err(e) => {
                                lock(&failed).get_or_insert(e);
                            }
                        }
                    }
                });
            }
        });
        drop(queue);
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(e) => Err(e.into()),
            None => Ok(Self { buffer, tensors }),
        }
    }

    /// A tensor's encoded rows.
    ///
    /// # Panics
    /// If `id` is no tensor of the model.
    pub fn tensor(&self, id: TensorId) -> StoredTensor<'_> {
        let Placed { dtype, rows, cols, offset, n_bytes } = self.tensors[&id];
        StoredTensor { dtype, rows, cols, bytes: &self.buffer[offset..][..n_bytes] }
    }

    /// A norm, a bias or the router as f32.
    ///
    /// # Panics
    /// If `id` is no tensor of the model, or one that is not kept in f32.
    pub fn f32s(&self, id: TensorId) -> &[f32] {
        let tensor = self.tensor(id);
        assert_eq!(tensor.dtype, DType::F32, "{id:?} is not kept in f32");
        bytemuck::cast_slice(tensor.bytes)
    }

    /// Bytes of the allocation.
    pub fn n_bytes(&self) -> usize {
        self.buffer.len()
    }
}

/// The encoding in the store.
fn stored_dtype(id: TensorId, entry: &Entry) -> DType {
    match id.component() {
        Component::Norm | Component::Bias | Component::Router => DType::F32,
        Component::Embedding | Component::Attention | Component::Experts | Component::LmHead => {
            entry.dtype
        }
    }
}

/// Lays the tensors out in catalogue order; answers places, order and total bytes.
fn place(checkpoint: &Checkpoint) -> (HashMap<TensorId, Placed>, Vec<TensorId>, usize) {
    let mut tensors = HashMap::new();
    let mut order = Vec::new();
    let mut end = 0usize;
    for (id, entry) in checkpoint.tensors() {
        let dtype = stored_dtype(id, &entry);
        let n_bytes = entry.rows * (entry.cols / dtype.block_len() * dtype.block_bytes());
        let offset = end.next_multiple_of(TENSOR_ALIGN);
        end = offset + n_bytes;
        tensors.insert(id, Placed { dtype, rows: entry.rows, cols: entry.cols, offset, n_bytes });
        order.push(id);
    }
    (tensors, order, end)
}

/// Cuts the buffer into one piece per task.
fn read_tasks<'a>(
    checkpoint: &Checkpoint,
    tensors: &HashMap<TensorId, Placed>,
    order: &[TensorId],
    buffer: &'a mut [u8],
) -> Vec<ReadTask<'a>> {
    let mut tasks = Vec::new();
    let mut rest = buffer;
    let mut at = 0;
    for &id in order {
        let placed = tensors[&id];
        let source = checkpoint.entry(id);
        let row_bytes = placed.n_bytes / placed.rows;
        rest = rest.split_at_mut(placed.offset - at).1;
        at = placed.offset + placed.n_bytes;
        let step = (READ_BYTES / row_bytes).max(1);
        for start in (0..placed.rows).step_by(step) {
            let rows = start..(start + step).min(placed.rows);
            let (target, after) = rest.split_at_mut(rows.len() * row_bytes);
            rest = after;
            tasks.push(ReadTask { id, source, dtype: placed.dtype, rows, target });
        }
    }
    tasks
}

fn read(
    checkpoint: &Checkpoint,
    task: ReadTask<'_>,
    raw: &mut Vec<u8>,
) -> tandem_model::Result<()> {
    let ReadTask { id, source, dtype, rows, target } = task;
    if dtype == source.dtype {
        return checkpoint.read_rows(id, rows, target);
    }
    raw.resize(rows.len() * source.row_bytes(), 0);
    checkpoint.read_rows(id, rows, raw)?;
    // The only change of encoding is to f32.
    blocks::dequantize(source.dtype, raw, bytemuck::cast_slice_mut(target));
    Ok(())
}

/// The next task, or none once one has failed.
fn next<'a>(
    queue: &Mutex<std::vec::IntoIter<ReadTask<'a>>>,
    failed: &Mutex<Option<tandem_model::ModelError>>,
) -> Option<ReadTask<'a>> {
    if lock(failed).is_some() { None } else { lock(queue).next() }
}

/// A poisoned lock means that another thread panicked; the scope will pass that on.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
