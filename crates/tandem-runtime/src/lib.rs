//! Runs models: the forward pass over a batch of tokens, sampling, and the loop that writes a text.
#![forbid(unsafe_code)]

pub mod bandwidth;
pub mod bench;
pub mod calibrate;
mod device;
mod error;
mod executor;
mod experts;
mod lookup;
mod model;
pub mod partition;
pub mod perplexity;
pub mod plan;
mod profile;
mod sampling;
mod session;
mod stop;
pub mod telemetry;
mod ticker;

pub use device::Device;
pub use error::{Result, RuntimeError};
pub use executor::{DEFAULT_BATCH, Executor, LogitsFor, RouterTrace, Threads, evaluate};
pub use model::Model;
pub use profile::{Cost, Operation, Profile};
pub use sampling::{Sampler, SamplingParams};
pub use session::{FinishReason, Generated, Request, Session};
pub use stop::{Filtered, StopFilter};
