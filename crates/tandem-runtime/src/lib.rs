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
mod instrumentation;
mod lookup;
mod model;
pub mod partition;
pub mod perplexity;
pub mod plan;
pub mod policy;
mod profile;
mod sampling;
mod stop;
pub mod telemetry;
mod ticker;
mod usual;

pub use device::Device;
mod text;

pub use engine::{
    BandwidthState, Cancel, DeviceDescription, Engine, EngineLoad, EngineOptions, EngineSetup,
    EngineState, Event, Handle, PlanState, PlanStep, Rates, StepDescription, Throughput,
    TimelineSpan, TimelineState, TokenState,
};
pub use error::{Result, RuntimeError};
pub use executor::{
    DEFAULT_BATCH, Degradation, Executor, Instruments, LogitsFor, OperationInput, OperationRequest,
    OperationResult, OperationShape, RouterTrace, Segment, Threads, evaluate,
};
pub use instrumentation::{Instrumentation, InstrumentationParams};
pub use model::Model;
pub use profile::{Cost, Operation, Profile};
pub use sampling::{
    AnswerForm, Constraint, MAX_TOP_LOGPROBS, Sampler, SamplingParams, TokenLogprobs, Tool,
    ToolCalls,
};
pub use stop::{Filtered, StopFilter};
pub use text::{
    FinishReason, ForeignError, ForeignModel, ForeignSession, Generated, Listener, Output, Request,
    Session,
};
pub use usual::fresh_seed;
