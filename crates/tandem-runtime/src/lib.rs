//! Runs models: the forward pass over a batch of tokens, sampling, and the loop that writes a text.
#![forbid(unsafe_code)]

pub mod bandwidth;
pub mod bench;
pub mod calibrate;
mod device;
mod engine;
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
mod stop;
pub mod telemetry;
mod ticker;

pub use device::Device;
mod text;

pub use engine::{Engine, EngineLoad, EngineOptions, Event, Handle};
pub use error::{Result, RuntimeError};
pub use executor::{DEFAULT_BATCH, Executor, LogitsFor, RouterTrace, Segment, Threads, evaluate};
pub use model::Model;
pub use profile::{Cost, Operation, Profile};
pub use sampling::{Sampler, SamplingParams};
pub use stop::{Filtered, StopFilter};
pub use text::{
    FinishReason, ForeignError, ForeignModel, ForeignSession, Generated, Request, Session,
};
