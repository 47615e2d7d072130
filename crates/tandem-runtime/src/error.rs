//! Why text could not be generated.

use tandem_gpu::GpuError;
use tandem_memory::{AllocError, KvError, MemoryError};
use tandem_model::ModelError;

use crate::bandwidth::BadCap;
use crate::policy::UnknownPolicy;
use crate::telemetry::TelemetryError;
use crate::text::ForeignError;

/// Why the runtime could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The model's files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The weights in memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Memory for activations.
    #[error("activations: {0}")]
    Activations(#[from] AllocError),
    /// The GPU. A forward pass never ends with this one: it is computed on the CPU then.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The KV cache.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// Another library that computes the model.
    #[error("{0}")]
    Foreign(ForeignError),
    /// Threads could not be started.
    #[error("cannot start {threads} threads: {source}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A sampling parameter is out of range.
    #[error("{name}: expected {expected}, found {found}")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// Its value.
        found: f32,
    },
    /// The executor has no GPU.
    #[error("there is no GPU to measure")]
    NoGpu,
    /// The GPU was put aside while it was measured.
    #[error("the GPU failed: {0}")]
    GpuFailed(String),
    /// There is nothing to continue.
    #[error("the prompt is empty: the model needs at least one token to continue from")]
    EmptyPrompt,
    /// The prompt does not fit the context.
    #[error(
        "the prompt has {tokens} tokens, but the context holds only {context}: shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// As many texts wait for their turn as may.
    #[error(
        "the queue is full: {waiting} texts wait behind {running} that are written: try again later"
    )]
    QueueFull {
        /// Texts that wait.
        waiting: usize,
        /// Texts that are read or written.
        running: usize,
    },
    /// Another process that computes is gone, or says nothing.
    #[error("the scheduler behind this server is gone or does not answer: try again later")]
    ElsewhereGone,
    /// Another process that computes has as many texts as it takes.
    #[error("{0}")]
    ElsewhereFull(String),
    /// Another process that computes says that something is not as it must be.
    #[error("{0}")]
    ElsewhereRefused(String),
    /// Another process that computes says so.
    #[error("{0}")]
    Elsewhere(String),
    /// The engine takes no more texts.
    #[error("the engine has stopped")]
    EngineStopped,
    /// What was to run between two rounds panicked.
    #[error("a task of the engine panicked: {0}")]
    Panicked(String),
    /// Telemetry.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The cap of background mode.
    #[error(transparent)]
    Background(#[from] BadCap),
    /// There is no such policy.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
    /// An id is beyond the vocabulary.
    #[error("token id {id}: expected less than the vocabulary size {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// The answer cannot go on as its constraint wants.
    #[error("the answer's grammar: {message}")]
    Constraint {
        /// What the constraint says.
        message: String,
    },
    /// An operation cannot be run by itself as it was asked for.
    #[error("{field}: expected {expected}, found {found}")]
    Operation {
        /// What is not as it must be.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Logits are NaN or infinite.
    #[error(
        "the model's logits are not finite: its numbers have overflown, the weights may be damaged"
    )]
    NoFiniteLogit,
}

/// Shorthand of this crate.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;
