//! The scheduler service: work packets and texts over ZeroMQ.
//!
//! [`protocol`] is what is said (`docs/protocol.md`), [`server`] the service, [`client`] who asks it.
#![forbid(unsafe_code)]

mod address;
pub mod client;
mod error;
mod packet;
pub mod protocol;
pub mod server;
mod wake;

pub use address::Address;
pub use error::{IpcError, Result};
use protocol::tensor_bytes;
