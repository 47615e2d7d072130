//! Several texts at a time: continuous batching, token by token.
//!
//! A thread of its own owns the executor. Each of its rounds is one pass, with the newest token of every text that is
//! being written and some tokens of prompts that are being read. So weights are read once for all of them, a text joins
//! or leaves between any two tokens, and no prompt, however long, keeps the others waiting for longer than its chunk
//! takes.
//!
//! Keys and values of all texts are in pages of one pool. Texts that begin alike have pages in common, those that run now
//! and those that have ended: what is in them is computed once. A text begins when there are pages for its prompt; where
//! they run out, those of ended texts are given up, and then the text that began last is interrupted, and goes on when
//! others have ended.

mod control;
mod describe;
mod handle;
mod pages;
mod prefix;
mod queue;
mod rounds;
mod state;
mod status;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tandem_memory::{KvPool, KvType, PAGE_TOKENS};
use tandem_model::PhimoeConfig;
use tandem_model::tokenizer::Tokenizer;

use crate::calibrate::Choices;
use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, check_ids};
use crate::instrumentation::Instrumentation;
use crate::partition::{Partition, Wanted};
use crate::policy::PolicyKind;
use crate::sampling::Sampler;
use crate::text::{Request, check_prompt};
use control::Steering;
pub use describe::{DeviceDescription, StepDescription};
use handle::Job;
pub use handle::{Cancel, Event, Handle};
use queue::Queue;
use rounds::Rounds;
pub use state::{
    BandwidthState, EngineState, PlanState, PlanStep, Rates, TimelineSpan, TimelineState,
    TokenState,
};
use status::Status;
pub use status::Throughput;

/// Bytes of all texts' KV pages, at most, where neither their number nor a single text's length ask for more.
const DEFAULT_KV_BYTES: usize = 4 << 30;

/// How an engine shares itself out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Texts that are read and written at a time, at most.
    pub max_sequences: usize,
    /// Texts that wait for their turn, at most.
    pub max_waiting: usize,
    /// Tokens of prompts in a round, at most, while some text is being written: that bounds the time between two of its
    /// tokens. With none being written, as many as the executor takes.
    pub prefill_chunk: usize,
    /// Tokens of a text, at most; fewer where all pages together hold no more.
    pub context: usize,
    /// Tokens that all texts together have KV pages for, those that ended and are kept included: this is the limit of their
    /// memory. None is as many as `max_sequences` texts of the longest kind take, but no more than one such text or 4 GiB,
    /// whichever is more.
    pub kv_tokens: Option<usize>,
    /// How keys and values are stored.
    pub kv_type: KvType,
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Texts that are read or written.
    pub running: usize,
    /// Texts that wait for that.
    pub waiting: usize,
}

/// What an engine is watched by, and what decides where it computes.
#[derive(Clone, Default)]
pub struct EngineSetup {
    /// What watches its passes, and holds them back.
    pub instrumentation: Option<Arc<Instrumentation>>,
    /// What the executor is to follow; without it, its plans are taken as they are.
    pub partition: Option<Partition>,
    /// What calibration chose, where the partition asks for it.
    pub choices: Option<Choices>,
    /// What decides while it runs.
    pub policy: PolicyKind,
    /// The CPU's name.
    pub cpu_name: Option<String>,
}

/// Reads and writes several texts at a time. When it is dropped, all of them end.
pub struct Engine {
    queue: Arc<Queue>,
    status: Arc<Status>,
    options: EngineOptions,
    pool: KvPool,
    config: PhimoeConfig,
    devices: Vec<DeviceDescription>,
    instrumentation: Option<Arc<Instrumentation>>,
    steering: Mutex<Steering>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts an engine.
    ///
    /// # Errors
    /// Where a number in `options` is out of range, memory for keys and values cannot be had, or the thread cannot be
    /// started.
    pub fn start(
        executor: Executor,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
    ) -> Result<Self> {
        Self::start_with(executor, tokenizer, options, EngineSetup::default())
    }

    /// As [`Self::start`], watched and steered.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        mut executor: Executor,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
        setup: EngineSetup,
    ) -> Result<Self> {
        let check = |ok: bool, name, expected, found: usize| match ok {
            true => Ok(()),
            false => Err(RuntimeError::Parameter { name, expected, found: found as f32 }),
        };
        let EngineOptions { max_sequences, prefill_chunk, context, kv_tokens, .. } = options;
        let fits = (1..executor.batch()).contains(&max_sequences);
        check(fits, "max_sequences", "1 or more, and fewer than a batch", max_sequences)?;
        check(prefill_chunk > 0, "prefill_chunk", "1 or more", prefill_chunk)?;
        check(context > 0, "context", "1 or more", context)?;
        let kv_tokens = kv_tokens.unwrap_or_else(|| default_kv_tokens(&executor, options));
        check(kv_tokens > 0, "kv_tokens", "1 or more", kv_tokens)?;
        let pool = executor.kv_pool(kv_tokens, options.kv_type)?;
        let EngineSetup { instrumentation, partition, choices, policy, cpu_name } = setup;
        if let Some(instrumentation) = &instrumentation {
            executor.set_instruments(instrumentation.instruments());
        }
        if let Some(partition) = &partition {
            executor.direct(partition, choices.as_ref(), policy, instrumentation.clone());
        }
        let recorder = executor.instruments().recorder().clone();
        let (queue, status) = (Arc::new(Queue::new(recorder)), Arc::new(Status::default()));
        let config = executor.model().config().clone();
        let devices = describe::devices(&executor, cpu_name);
        let shared = (Arc::clone(&queue), Arc::clone(&status), pool.clone());
        let thread = std::thread::Builder::new()
            .name("tandem-engine".into())
            .spawn(move || {
                let (queue, status, pool) = shared;
                Rounds::new(executor, &tokenizer, (&queue, &status), options, &pool).run();
            })
            .map_err(|source| RuntimeError::Threads { threads: 1, source })?;
        let partition = partition.unwrap_or_else(|| Partition::everything(Wanted::Cpu));
        Ok(Self {
            queue,
            status,
            options,
            pool,
            config,
            devices,
            instrumentation,
            steering: Mutex::new(Steering {
                pipelining: partition.scheduling().pipelining,
                partition,
                choices,
                policy,
            }),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Has `prompt` continued. Nothing is guessed ahead, whatever [`Request::lookup`] says: the tokens of other texts share
    /// a pass instead.
    ///
    /// # Errors
    /// Where the prompt is empty, too long or not of this vocabulary, a parameter is out of range, as many texts wait
    /// as may, or the engine has stopped.
    pub fn submit(&self, prompt: Vec<u32>, request: Request) -> Result<Handle> {
        self.resume(prompt, 0, request)
    }

    /// As [`Self::submit`], for a text that another has begun: so many tokens at the prompt's end are the answer's beginning.
    /// What is told of comes after them.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn resume(&self, prompt: Vec<u32>, written: usize, request: Request) -> Result<Handle> {
        let (handle, job) = handle::channel(prompt, request);
        self.push(Job { written, ..job })?;
        Ok(handle)
    }

    /// As [`Self::submit`], for those who would rather be told than wait: the engine's thread calls `listener` with every
    /// event, and drops it after the last one. It should return at once.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_to(
        &self,
        prompt: Vec<u32>,
        request: Request,
        listener: impl FnMut(Event) + Send + 'static,
    ) -> Result<Cancel> {
        self.resume_to(prompt, 0, request, listener)
    }

    /// As [`Self::submit_to`], for a text that another has begun: see [`Self::resume`].
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn resume_to(
        &self,
        prompt: Vec<u32>,
        written: usize,
        request: Request,
        listener: impl FnMut(Event) + Send + 'static,
    ) -> Result<Cancel> {
        let (cancel, job) = handle::told(prompt, request, listener);
        self.push(Job { written, ..job })?;
        Ok(cancel)
    }

    fn push(&self, job: Job) -> Result<()> {
        check_prompt(&job.prompt, self.context())?;
        check_ids(&job.prompt, self.config.vocab_size)?;
        // Only to see whether it can be made.
        Sampler::new(job.request.sampling.clone())?;
        let request = Request { lookup: 0, ..job.request };
        self.queue.push(Job { request, ..job }, self.options.max_waiting)
    }

    /// Tokens of a text, at most: [`EngineOptions::context`], or what all pages hold where that is less.
    pub fn context(&self) -> usize {
        self.options.context.min(self.pool.tokens())
    }

    /// The pages of all texts.
    pub fn kv_pool(&self) -> &KvPool {
        &self.pool
    }

    /// The model's dimensions.
    pub fn config(&self) -> &PhimoeConfig {
        &self.config
    }

    /// Whether the engine takes texts.
    pub fn is_running(&self) -> bool {
        self.queue.is_open()
    }

    /// How busy the engine is.
    pub fn load(&self) -> EngineLoad {
        self.queue.load()
    }
}

/// [`EngineOptions::kv_tokens`], where they are not given.
fn default_kv_tokens(executor: &Executor, options: EngineOptions) -> usize {
    let EngineOptions { context, max_sequences, kv_type, .. } = options;
    let longest = context.div_ceil(PAGE_TOKENS).saturating_mul(PAGE_TOKENS);
    let most = DEFAULT_KV_BYTES / executor.kv_shape(kv_type).token_bytes();
    longest.saturating_mul(max_sequences).min(most.max(longest))
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Nobody is there to be told what went wrong with a file.
        let _ = self.shutdown(false);
    }
}
