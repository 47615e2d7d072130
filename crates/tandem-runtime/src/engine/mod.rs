//! Several texts at a time: continuous batching, token by token.
//!
//! A thread of its own owns the executor. Each of its rounds is one pass, with the newest token of every text that is
//! being written and some tokens of prompts that are being read. So weights are read once for all of them, a text joins
//! or leaves between any two tokens, and no prompt, however long, keeps the others waiting for longer than its chunk
//! takes.

mod handle;
mod queue;
mod rounds;

use std::sync::Arc;
use std::thread::JoinHandle;

use tandem_memory::KvType;
use tandem_model::tokenizer::Tokenizer;

use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, check_ids};
use crate::sampling::Sampler;
use crate::text::{Request, check_prompt};
pub use handle::{Cancel, Event, Handle};
use handle::Job;
use queue::Queue;
use rounds::Rounds;

/// How an engine shares itself out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Texts that are read and written at a time, at most; each may have a KV cache of its own.
    pub max_sequences: usize,
    /// Texts that wait for their turn, at most.
    pub max_waiting: usize,
    /// Tokens of prompts in a round, at most, while some text is being written: that bounds the time between two of its
    /// tokens. With none being written, as many as the executor takes.
    pub prefill_chunk: usize,
    /// Tokens that a text's KV cache has room for.
    pub context: usize,
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

/// Reads and writes several texts at a time. When it is dropped, all of them end.
pub struct Engine {
    queue: Arc<Queue>,
    options: EngineOptions,
    vocab_size: usize,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts an engine.
    ///
    /// # Errors
    /// Where a number in `options` is out of range, or the thread cannot be started.
    pub fn start(
        executor: Executor,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
    ) -> Result<Self> {
        let check = |ok: bool, name, expected, found: usize| match ok {
            true => Ok(()),
            false => Err(RuntimeError::Parameter { name, expected, found: found as f32 }),
        };
        let EngineOptions { max_sequences, prefill_chunk, context, .. } = options;
        let fits = (1..executor.batch()).contains(&max_sequences);
        check(fits, "max_sequences", "1 or more, and fewer than a batch", max_sequences)?;
        check(prefill_chunk > 0, "prefill_chunk", "1 or more", prefill_chunk)?;
        check(context > 0, "context", "1 or more", context)?;
        let (queue, vocab_size) =
            (Arc::new(Queue::default()), executor.model().config().vocab_size);
        let shared = Arc::clone(&queue);
        let thread = std::thread::Builder::new()
            .name("tandem-engine".into())
            .spawn(move || Rounds::new(executor, &tokenizer, &shared, options).run())
            .map_err(|source| RuntimeError::Threads { threads: 1, source })?;
        Ok(Self { queue, options, vocab_size, thread: Some(thread) })
    }

    /// Has `prompt` continued. Nothing is guessed ahead, whatever [`Request::lookup`] says: the tokens of other texts share
    /// a pass instead.
    ///
    /// # Errors
    /// Where the prompt is empty, too long or not of this vocabulary, a parameter is out of range, as many texts wait
    /// as may, or the engine has stopped.
    pub fn submit(&self, prompt: Vec<u32>, request: Request) -> Result<Handle> {
        let (handle, job) = handle::channel(prompt, request);
        self.push(job)?;
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
        let (cancel, job) = handle::told(prompt, request, listener);
        self.push(job)?;
        Ok(cancel)
    }

    fn push(&self, job: Job) -> Result<()> {
        check_prompt(&job.prompt, self.options.context)?;
        check_ids(&job.prompt, self.vocab_size)?;
        // Only to see whether it can be made.
        Sampler::new(job.request.sampling.clone())?;
        let request = Request { lookup: 0, ..job.request };
        self.queue.push(Job { request, ..job }, self.options.max_waiting)
    }

    /// How busy the engine is.
    pub fn load(&self) -> EngineLoad {
        self.queue.load()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // If it panicked, that has been printed, and whoever waited for texts knows that they ended.
            let _ = thread.join();
        }
    }
}
