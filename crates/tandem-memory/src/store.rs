//! All weights of a model in one page-aligned allocation.
//!
//! Weights are read with `pread` into memory of our own and not mapped: a GPU can then address the very same bytes,
//! and a file that changes or vanishes later does no harm. Matrices keep the file's encoding, q4_0 and q8_0 ones in
//! the [packed layout](crate::packed); norms, biases and the router become f32, which is how they are used.
//!
//! Packing happens a few megabytes at a time, between reading and the place in the store: there is never a second
//! copy of the model.

use std::ops::Range;
use std::sync::Mutex;

use tandem_formats::{DType, blocks};
use tandem_model::catalogue::Component;
use tandem_model::{Checkpoint, Entry, TensorId};

use crate::packed::{PackedLayout, PackedMatrix, PackedType, TILE_ROWS};
use crate::{AlignedBuffer, Allocator, MemoryError, SystemMemory};

/// Tensors begin at multiples of this: a cache line, and what OpenCL asks of host pointers.
const TENSOR_ALIGN: usize = 64;

/// Bytes one thread reads at a time: large enough for the disk, small enough to share out and to fit a cache.
const READ_BYTES: usize = 2 << 20;

/// Weights of a model, ready to be computed with.
pub struct WeightStore {
    buffer: AlignedBuffer,
    places: Places,
}

/// Where each tensor lies, in catalogue order: an executor looks up dozens in every layer of every token.
struct Places {
    n_layers: usize,
    n_experts: usize,
    places: Vec<Placed>,
}

impl std::ops::Index<TensorId> for Places {
    type Output = Placed;

    fn index(&self, id: TensorId) -> &Placed {
        &self.places[id.index(self.n_layers, self.n_experts)]
    }
}

/// Where a tensor lies in the store.
#[derive(Clone, Copy, Debug)]
struct Placed {
    form: Form,
    offset: usize,
}

/// How a tensor lies in the store.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Encoded rows, one after the other.
    Rows { dtype: DType, rows: usize, cols: usize },
    /// Packed tiles.
    Packed(PackedLayout),
}

/// What becomes of matrices that have a packed form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// They are packed: fast, with activations in 8 bits.
    Packed,
    /// They stay as they are in the file: slow, with activations in f32.
    AsInFile,
}

/// A tensor in the store.
#[derive(Clone, Copy, Debug)]
pub enum StoredTensor<'a> {
    /// Encoded rows, one after the other.
    Rows(StoredRows<'a>),
    /// Packed tiles.
    Packed(PackedMatrix<'a>),
}

/// A tensor of `rows x cols` weights in rows of whole blocks.
#[derive(Clone, Copy, Debug)]
pub struct StoredRows<'a> {
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
    rows: Range<usize>,
    target: Target<'a>,
}

/// Where the weights of a task go.
enum Target<'a> {
    Rows { dtype: DType, bytes: &'a mut [u8] },
    Packed { layout: PackedLayout, quants: &'a mut [u8], scales: &'a mut [u8] },
}

impl WeightStore {
    /// Reads all weights of `checkpoint` with `threads` threads. `progress` is told bytes of the file as they are
    /// done, from any thread.
    ///
    /// # Errors
    /// Where memory is short, where a file cannot be read, and where a weight is NaN or infinite.
    pub fn load(
        checkpoint: &Checkpoint,
        packing: Packing,
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, MemoryError> {
        Self::load_in(&SystemMemory, checkpoint, packing, threads, progress)
    }

    /// As [`Self::load`], into memory from `allocator`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_in(
        allocator: &dyn Allocator,
        checkpoint: &Checkpoint,
        packing: Packing,
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, MemoryError> {
        let (places, total) = place(checkpoint, packing);
        let mut buffer = allocator.zeroed(total)?;
        buffer.advise_huge_pages();
        let tasks = read_tasks(checkpoint, &places, buffer.as_mut_slice());
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
            None => Ok(Self { buffer, places }),
        }
    }

    /// A tensor.
    ///
    /// # Panics
    /// If `id` is no tensor of the model.
    pub fn tensor(&self, id: TensorId) -> StoredTensor<'_> {
        let Placed { form, offset } = self.places[id];
        let bytes = &self.buffer[offset..][..form.n_bytes()];
        match form {
            Form::Rows { dtype, rows, cols } => {
                StoredTensor::Rows(StoredRows { dtype, rows, cols, bytes })
            }
            Form::Packed(layout) => StoredTensor::Packed(PackedMatrix::new(layout, bytes)),
        }
    }

    /// A norm, a bias or the router as f32.
    ///
    /// # Panics
    /// If `id` is no tensor of the model, or one that is not kept in f32.
    pub fn f32s(&self, id: TensorId) -> &[f32] {
        match self.tensor(id) {
            StoredTensor::Rows(StoredRows { dtype: DType::F32, bytes, .. }) => {
                bytemuck::cast_slice(bytes)
            }
            other => panic!("{id:?} is not kept in f32 but as {other:?}"),
        }
    }

    /// A tensor's place in [`Self::bytes`].
    ///
    /// # Panics
    /// If `id` is no tensor of the model.
    pub fn place(&self, id: TensorId) -> Range<usize> {
        let Placed { form, offset } = self.places[id];
        offset..offset + form.n_bytes()
    }

    /// All tensors, for a device that addresses the same memory or has a copy of it.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// The allocation as words, whatever they mean.
    pub fn words(&self) -> &[u64] {
        self.buffer.typed()
    }

    /// Bytes of the allocation.
    pub fn n_bytes(&self) -> usize {
        self.buffer.len()
    }
}

impl Form {
    /// How a tensor of the file is kept.
    fn of(id: TensorId, entry: &Entry, packing: Packing) -> Self {
        let Entry { dtype, rows, cols, .. } = *entry;
        match id.component() {
            Component::Norm | Component::Bias | Component::Router => {
                Self::Rows { dtype: DType::F32, rows, cols }
            }
            Component::Embedding
            | Component::Attention
            | Component::Experts
            | Component::LmHead => PackedType::of(dtype)
                .filter(|_| packing == Packing::Packed)
                .and_then(|kind| PackedLayout::new(kind, rows, cols))
                .map_or(Self::Rows { dtype, rows, cols }, Self::Packed),
        }
    }

    fn n_bytes(&self) -> usize {
        match self {
            // Openers of checkpoints refuse rows that are no whole number of blocks.
            Self::Rows { dtype, rows, cols } => {
                rows * (cols / dtype.block_len() * dtype.block_bytes())
            }
            Self::Packed(layout) => layout.n_bytes(),
        }
    }

    /// Cuts a tensor's place in the store into tasks.
    fn tasks<'a>(&self, id: TensorId, source: Entry, place: &'a mut [u8]) -> Vec<ReadTask<'a>> {
        let step = (READ_BYTES / source.row_bytes()).max(1);
        let rows = |start: usize, step: usize| start..(start + step).min(source.rows);
        match *self {
            Self::Rows { dtype, .. } => {
                let row_bytes = self.n_bytes() / source.rows;
                (0..source.rows)
                    .step_by(step)
                    .zip(place.chunks_mut(step * row_bytes))
                    .map(|(start, bytes)| {
                        let target = Target::Rows { dtype, bytes };
                        ReadTask { id, source, rows: rows(start, step), target }
                    })
                    .collect()
            }
            Self::Packed(layout) => {
                let step = step.next_multiple_of(TILE_ROWS);
                let tiles = step / TILE_ROWS;
                let (quants, scales) = place.split_at_mut(layout.quant_bytes());
                let quants = quants.chunks_mut(tiles * layout.tile_quant_bytes());
                let scales = scales.chunks_mut(tiles * layout.tile_scale_bytes());
                (0..source.rows)
                    .step_by(step)
                    .zip(quants.zip(scales))
                    .map(|(start, (quants, scales))| {
                        let target = Target::Packed { layout, quants, scales };
                        ReadTask { id, source, rows: rows(start, step), target }
                    })
                    .collect()
            }
        }
    }
}

/// Lays the tensors out in catalogue order; answers places and total bytes.
fn place(checkpoint: &Checkpoint, packing: Packing) -> (Places, usize) {
    let (n_layers, n_experts) = (checkpoint.config().n_layers, checkpoint.config().n_experts);
    let mut places = Vec::new();
    let mut end = 0usize;
    for (id, entry) in checkpoint.tensors() {
        let form = Form::of(id, &entry, packing);
        let offset = end.next_multiple_of(TENSOR_ALIGN);
        end = offset + form.n_bytes();
        places.push(Placed { form, offset });
    }
    (Places { n_layers, n_experts, places }, end)
}

/// Cuts the buffer into one piece per task.
fn read_tasks<'a>(
    checkpoint: &Checkpoint,
    places: &Places,
    buffer: &'a mut [u8],
) -> Vec<ReadTask<'a>> {
    let mut tasks = Vec::new();
    let mut rest = buffer;
    let mut at = 0;
    for ((id, entry), &Placed { form, offset }) in checkpoint.tensors().zip(&places.places) {
        let (place, after) = rest.split_at_mut(offset - at).1.split_at_mut(form.n_bytes());
        rest = after;
        at = offset + form.n_bytes();
        tasks.extend(form.tasks(id, entry, place));
    }
    tasks
}

fn read(
    checkpoint: &Checkpoint,
    task: ReadTask<'_>,
    raw: &mut Vec<u8>,
) -> tandem_model::Result<()> {
    let ReadTask { id, source, rows, target } = task;
    let target = match target {
        Target::Rows { dtype, bytes } if dtype == source.dtype => {
            return checkpoint.read_rows(id, rows, bytes);
        }
        other => other,
    };
    raw.resize(rows.len() * source.row_bytes(), 0);
    checkpoint.read_rows(id, rows, raw)?;
    match target {
        // The only change of encoding is to f32.
        Target::Rows { bytes, .. } => {
            blocks::dequantize(source.dtype, raw, bytemuck::cast_slice_mut(bytes));
        }
        Target::Packed { layout, quants, scales } => layout.pack_tiles(raw, quants, scales),
    }
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
