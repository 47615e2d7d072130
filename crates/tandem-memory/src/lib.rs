//! Memory that every device can address: the weight store and the KV cache.

mod aligned;
mod error;
mod kv;
pub mod packed;
mod quantized;
mod store;

pub use aligned::{AlignedBuffer, AllocError, Allocator, Element, SuppliedMemory, SystemMemory};
pub use error::MemoryError;
pub use kv::{
    KV_BLOCK, KvCache, KvData, KvError, KvLayer, KvPage, KvPart, KvPlace, KvPool, KvPoolWatch,
    KvShape, KvType, PAGE_TOKENS,
};
pub use packed::{PackedLayout, PackedMatrix, PackedType};
pub use quantized::QuantizedBlock;
pub use store::{Packing, StoredRows, StoredTensor, WeightStore};
