//! Memory that every device can address: the weight store and the KV cache.

mod aligned;
mod error;
mod kv;
mod packed;
mod store;

pub use aligned::{AlignedBuffer, AllocError, Element};
pub use error::MemoryError;
pub use kv::{KvCache, KvData, KvError, KvLayer, KvType};
pub use packed::{BLOCK_COLS, PackedLayout, PackedMatrix, PackedType, TILE_ROWS};
pub use store::{StoredTensor, WeightStore};
