//! Pages: one allocation, and who has what of it.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{KvError, KvShape};
use crate::aligned::{AlignedBuffer, Allocator};

/// Pages of keys and values, in one allocation that every device can address. Clones are the same pool.
///
/// Memory is committed as pages are written, and pages that were given back are taken before new ones: a pool takes as
/// much memory as its sequences ever had at a time.
#[derive(Clone, Debug)]
pub struct KvPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    shape: KvShape,
    pages: usize,
    free: Mutex<Free>,
    start: NonNull<u8>,
    /// Owner of the memory, which nobody looks into but by pages.
    _buffer: AlignedBuffer,
}

// SAFETY: `start` is the buffer's, which is plain memory of this pool's that any thread may use. Who may use which part of
// it when, pages say: each byte belongs to one `Owned`.
unsafe impl Send for Pool {}
// SAFETY: as above; what is shared of a pool itself is behind a lock or never changes.
unsafe impl Sync for Pool {}

/// Pages that nobody has.
#[derive(Debug, Default)]
struct Free {
    /// Those that were given back.
    returned: Vec<u32>,
    /// The first that nobody has ever had, and all after it.
    fresh: u32,
}

/// Tells whether a pool is still there, without keeping it.
#[derive(Clone, Debug)]
pub struct KvPoolWatch(Weak<Pool>);

impl KvPool {
    /// A pool with room for `tokens` tokens, rounded up to whole pages. Memory is committed only as pages are written.
    ///
    /// # Errors
    /// When a dimension is zero, the size overflows, heads are not of the type's whole blocks, or the memory cannot be
    /// had.
    pub fn new(allocator: &dyn Allocator, shape: KvShape, tokens: usize) -> Result<Self, KvError> {
        shape.check(tokens)?;
        let pages = shape.pages(tokens);
        let KvShape { layers, kv_heads, head_dim, .. } = shape;
        let fault = KvError::Shape { layers, kv_heads, head_dim, capacity: tokens };
        if u32::try_from(pages).is_err() {
            return Err(fault);
        }
        let bytes = shape.page_bytes().checked_mul(pages).ok_or(fault)?;
        let mut buffer = allocator.zeroed(bytes)?;
        let start = NonNull::from(buffer.as_mut_slice()).cast();
        let free = Mutex::new(Free::default());
        Ok(Self(Arc::new(Pool { shape, pages, free, start, _buffer: buffer })))
    }

    /// The shape of its pages.
    pub fn shape(&self) -> &KvShape {
        &self.0.shape
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.0.pages
    }

    /// Tokens that all pages together have room for.
    pub fn tokens(&self) -> usize {
        self.0.pages * self.0.shape.page_tokens
    }

    /// Pages that nobody has.
    pub fn free_pages(&self) -> usize {
        let free = self.0.free();
        self.0.pages - free.fresh as usize + free.returned.len()
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> usize {
        self.0.pages * self.0.shape.page_bytes()
    }

    /// Address of the first page's first byte: page `n` begins `n` times [`KvShape::page_bytes`] after it. For devices,
    /// which find memory by address.
    pub fn address(&self) -> usize {
        self.0.start.addr().get()
    }

    /// Whether two are the same pool.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What tells whether the pool is still there.
    pub fn watch(&self) -> KvPoolWatch {
        KvPoolWatch(Arc::downgrade(&self.0))
    }

    /// A page that nobody had.
    pub(super) fn take(&self) -> Option<KvPage> {
        let index = {
            let mut free = self.0.free();
            let fresh = free.fresh;
            let unused = || ((fresh as usize) < self.0.pages).then_some(fresh);
            match free.returned.pop() {
                Some(index) => index,
                None => {
                    let index = unused()?;
                    free.fresh += 1;
                    index
                }
            }
        };
        let stamps = vec![0; self.0.shape.layers];
        Some(KvPage(Arc::new(Owned { pool: Arc::clone(&self.0), index, stamps })))
    }
}

impl KvPoolWatch {
    /// Whether nobody uses the pool any more.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Whether it is this pool.
    pub fn is_of(&self, pool: &KvPool) -> bool {
        self.0.as_ptr() == Arc::as_ptr(&pool.0)
    }
}

impl Pool {
    /// The lists are whole at every moment, so a panic elsewhere does no harm to them.
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page of a pool, for one or more sequences. Clones are the same page; the pool has it back when the last one is
/// dropped.
#[derive(Clone, Debug)]
pub struct KvPage(Arc<Owned>);

/// A page's one owner.
#[derive(Debug)]
struct Owned {
    pool: Arc<Pool>,
    index: u32,
    /// For each layer a number that no other contents of any page have.
    stamps: Vec<u64>,
}

impl KvPage {
    /// Its number in the pool.
    pub fn index(&self) -> u32 {
        self.0.index
    }

    /// How often it is held: by caches, and whoever keeps it besides.
    pub fn owners(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Whether others have it too.
    pub fn is_shared(&self) -> bool {
        self.owners() > 1
    }

    /// Whether both are the same page.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether it is one of that pool's.
    pub fn is_of(&self, pool: &KvPool) -> bool {
        Arc::ptr_eq(&self.0.pool, &pool.0)
    }

    /// What tells a layer's contents from what they were before any write, and from those of other pages: for whoever
    /// keeps a copy.
    pub fn stamp(&self, layer: usize) -> u64 {
        self.0.stamps[layer]
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        let (at, len) = self.0.place();
        // SAFETY: the pool's memory has `len` bytes from there, and lives as long as `self.0`. They are this `Owned`'s
        // alone, since the pool hands an index out once until it comes back; and as there is a shared reference to it,
        // nobody has an exclusive one, which writing takes.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }
    }

    /// All of it for writing, where nobody else has it.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let owned = Arc::get_mut(&mut self.0)?;
        let (at, len) = owned.place();
        // SAFETY: as in `bytes`; and `get_mut` says that this reference to the `Owned` is the only one.
        Some(unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len) })
    }

    /// Gives a layer a new stamp, where nobody else has the page.
    pub(super) fn restamp(&mut self, layer: usize) {
        if let Some(owned) = Arc::get_mut(&mut self.0) {
            owned.stamps[layer] = new_stamp();
        }
    }

    /// Gives every layer a new stamp, where nobody else has the page.
    pub(super) fn restamp_all(&mut self) {
        (0..self.0.stamps.len()).for_each(|layer| self.restamp(layer));
    }
}

impl Owned {
    /// The page's first byte, and how many there are.
    fn place(&self) -> (NonNull<u8>, usize) {
        let len = self.pool.shape.page_bytes();
        // SAFETY: indices are below the pool's number of pages, which its memory has room for.
        (unsafe { self.pool.start.add(self.index as usize * len) }, len)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.pool.free().returned.push(self.index);
    }
}

/// A number that was not used before in this process. No page has 0 but one that was never written.
fn new_stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
