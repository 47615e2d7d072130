//! See the crate's description.

mod aligned;
mod kv;

pub use aligned::{AlignedBuffer, AllocError, Element};
pub use kv::{KvCache, KvData, KvError, KvLayer, KvType};
