//! The two ends of a text: whoever asked for it, and the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::error::{Result, RuntimeError};
use crate::sampling::TokenLogprobs;
use crate::text::{Generated, Request};

/// What happens to a text.
#[derive(Debug)]
pub enum Event {
    /// It goes on.
    Tokens {
        /// Ids that were chosen.
        ids: Vec<u32>,
        /// What the model made of each of them, where that was asked for.
        logprobs: Vec<TokenLogprobs>,
        /// The text that they complete: it may lag behind, where a character or what may be a stop string is not complete.
        text: String,
    },
    /// It has ended. Nothing comes after this.
    Finished(Generated),
    /// It could not go on. Nothing comes after this.
    Failed(Arc<RuntimeError>),
}

/// Ends a text: when asked to, or when it is dropped.
#[derive(Debug)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the text soon, with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled).
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// A text that was asked for. When it is dropped, the text ends.
#[derive(Debug)]
pub struct Handle {
    events: Receiver<Event>,
    cancel: Cancel,
}

impl Handle {
    /// Waits for the next event; `None` after the last one, or when the engine has stopped.
    pub fn next_event(&self) -> Option<Event> {
        self.events.recv().ok()
    }

    /// As [`Self::next_event`], for so long at most.
    ///
    /// # Errors
    /// Where nothing happened.
    pub fn next_event_within(&self, time: Duration) -> Result<Option<Event>, RecvTimeoutError> {
        match self.events.recv_timeout(time) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(timeout) => Err(timeout),
        }
    }

    /// Ends the text soon, with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled).
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Where the text could not go on, or the engine has stopped.
    pub fn wait(self) -> Result<Generated, Arc<RuntimeError>> {
        loop {
            match self.next_event() {
                Some(Event::Tokens { .. }) => {}
                Some(Event::Finished(generated)) => return Ok(generated),
                Some(Event::Failed(error)) => return Err(error),
                None => return Err(Arc::new(RuntimeError::EngineStopped)),
            }
        }
    }
}

/// The engine's end.
pub(super) struct Job {
    pub(super) prompt: Vec<u32>,
    /// How many tokens at the prompt's end are the answer's beginning.
    pub(super) written: usize,
    pub(super) request: Request,
    pub(super) reply: Reply,
}

/// Who hears of a text's events.
pub(super) type Listener = Box<dyn FnMut(Event) + Send>;

/// Where a text's events go.
pub(super) struct Reply {
    listener: Listener,
    cancelled: Arc<AtomicBool>,
}

impl Reply {
    pub(super) fn send(&mut self, event: Event) {
        (self.listener)(event);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What tells whether the text has been cancelled.
    pub(super) fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }
}

/// Both ends of a text whose events wait until somebody takes them.
pub(super) fn channel(prompt: Vec<u32>, request: Request) -> (Handle, Job) {
    let (sender, events) = std::sync::mpsc::channel();
    let (cancel, job) = told(prompt, request, move |event| {
        // Nobody listens any more: then the text has been cancelled too.
        let _ = sender.send(event);
    });
    (Handle { events, cancel }, job)
}

/// A text whose events a listener hears of.
pub(super) fn told(
    prompt: Vec<u32>,
    request: Request,
    listener: impl FnMut(Event) + Send + 'static,
) -> (Cancel, Job) {
    let cancelled = Arc::new(AtomicBool::new(false));
    let reply = Reply { listener: Box::new(listener), cancelled: Arc::clone(&cancelled) };
    (Cancel(cancelled), Job { prompt, written: 0, request, reply })
}
