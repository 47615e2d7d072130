//! A client of the scheduler: asks, waits for no longer than it was told to, and notices when the scheduler is gone.

mod connection;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::address::Address;
use crate::error::{IpcError, Result};
use crate::protocol::{Generate, GenerateResult, TokenLogprob};
use connection::Connection;

/// How often whoever listens to a text is asked whether it shall go on.
const POLL: Duration = Duration::from_millis(100);

/// How long a client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For an answer that needs no computing.
    pub answer: Duration,
    /// For the next sign of life of a text, before it asks whether the scheduler is still there.
    pub quiet: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { answer: Duration::from_secs(5), quiet: Duration::from_secs(5) }
    }
}

/// A client of one scheduler.
pub struct Client {
    connection: Connection,
    timeouts: Timeouts,
    next_id: u64,
}

/// An answer, or one message of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The JSON.
    pub fields: Map<String, Value>,
    /// The tensor, where one came.
    pub tensor: Option<Vec<u8>>,
}

/// News of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum TextEvent {
    /// The scheduler has it.
    Begun {
        /// The prompt as ids.
        prompt_ids: Vec<u32>,
        /// Start of its random numbers.
        seed: u64,
    },
    /// Nothing is new: a text that waits or whose prompt is read says nothing, but can be ended all the same. Comes several
    /// times a second.
    Waiting,
    /// It goes on.
    Tokens {
        /// Ids that were chosen.
        ids: Vec<u32>,
        /// What the model made of each of them, where that was asked for.
        logprobs: Vec<TokenLogprob>,
        /// The text that they complete.
        text: String,
    },
}

impl Client {
    /// A client that will connect when there is something to ask.
    ///
    /// # Errors
    /// Where there are no more sockets.
    pub fn connect(address: &Address, timeouts: Timeouts) -> Result<Self> {
        Ok(Self { connection: Connection::open(address)?, timeouts, next_id: 0 })
    }

    /// Whether the scheduler is well.
    ///
    /// # Errors
    /// Where it does not say so.
    pub fn health_check(&mut self) -> Result<Reply> {
        self.ask(message("health_check"), None)
    }

    /// Sends a message, and waits for its only answer.
    ///
    /// # Errors
    /// Where no answer comes in time, the connection ends, or the answer is an error.
    pub fn ask(&mut self, mut message: Map<String, Value>, tensor: Option<&[u8]>) -> Result<Reply> {
        let id = self.send(&mut message, tensor)?;
        let end = Instant::now() + self.timeouts.answer;
        loop {
            let reply =
                self.connection.receive(end)?.ok_or_else(|| self.time_out(self.timeouts.answer))?;
            // Others are late answers to what was given up.
            if reply.is_of(&id) {
                return reply.checked();
            }
        }
    }

    /// Has a text written. `listen` hears of it as it comes, and says whether it shall go on.
    ///
    /// # Errors
    /// Where the scheduler refuses it, goes silent, or is gone. What was heard until then stays so.
    pub fn generate(
        &mut self,
        generate: &Generate,
        listen: &mut dyn FnMut(TextEvent) -> ControlFlow<()>,
    ) -> Result<GenerateResult> {
        let mut asked_for = object(generate);
        asked_for.insert("type".to_owned(), "generate".into());
        asked_for.insert("stream".to_owned(), true.into());
        let id = self.send(&mut asked_for, None)?;
        let (mut asked, mut cancelled) = (false, false);
        let mut silent_since = Instant::now();
        loop {
            let wait = if asked { self.timeouts.answer } else { self.timeouts.quiet };
            let by = (silent_since + wait).min(Instant::now() + POLL);
            let event = match self.connection.receive(by)? {
                None if silent_since.elapsed() < wait => TextEvent::Waiting,
                None if asked => return Err(self.time_out(wait)),
                None => {
                    // A long prompt or a long queue says nothing for a while; the scheduler answers all the same.
                    self.send(&mut message("health_check"), None)?;
                    (asked, silent_since) = (true, Instant::now());
                    continue;
                }
                Some(reply) => {
                    (asked, silent_since) = (false, Instant::now());
                    if !reply.is_of(&id) {
                        continue;
                    }
                    match self.event(&reply.checked()?)? {
                        Heard::Event(event) => event,
                        Heard::Finished(result) => return Ok(*result),
                    }
                }
            };
            if listen(event).is_break() && !std::mem::replace(&mut cancelled, true) {
                let mut cancel = message("cancel");
                cancel.insert("target".to_owned(), id.clone());
                self.send(&mut cancel, None)?;
            }
        }
    }

    fn event(&self, reply: &Reply) -> Result<Heard> {
        match reply.fields.get("event").and_then(Value::as_str) {
            Some("begun") => {
                let prompt_ids = self.field(reply, "prompt_ids")?;
                let seed = self.field(reply, "seed")?;
                Ok(Heard::Event(TextEvent::Begun { prompt_ids, seed }))
            }
            Some("tokens") => {
                let (ids, text) = (self.field(reply, "ids")?, self.field(reply, "text")?);
                let logprobs = match reply.fields.contains_key("logprobs") {
                    true => self.field(reply, "logprobs")?,
                    false => Vec::new(),
                };
                Ok(Heard::Event(TextEvent::Tokens { ids, logprobs, text }))
            }
            Some("finished") => Ok(Heard::Finished(Box::new(self.field(reply, "result")?))),
            other => Err(self.not_as_it_should_be(format!("event {other:?}"))),
        }
    }

    /// A field of an answer.
    ///
    /// # Errors
    /// Where it is not there, or is something else.
    pub fn field<T: DeserializeOwned>(&self, reply: &Reply, name: &str) -> Result<T> {
        let value = reply.fields.get(name).cloned().unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|error| self.not_as_it_should_be(format!("{name}: {error}")))
    }

    /// Gives the message an id of its own, and sends it.
    fn send(&mut self, message: &mut Map<String, Value>, tensor: Option<&[u8]>) -> Result<Value> {
        self.next_id += 1;
        let id = Value::from(self.next_id);
        message.insert("id".to_owned(), id.clone());
        // A map with text for keys can be written.
        let json = serde_json::to_vec(message).unwrap_or_default();
        self.connection.send(json, tensor)?;
        Ok(id)
    }

    fn time_out(&self, waited: Duration) -> IpcError {
        let address = self.connection.address().to_owned();
        IpcError::TimeOut { address, seconds: waited.as_secs_f64() }
    }

    fn not_as_it_should_be(&self, what: String) -> IpcError {
        IpcError::Answer { address: self.connection.address().to_owned(), what }
    }
}

enum Heard {
    Event(TextEvent),
    Finished(Box<GenerateResult>),
}

impl Reply {
    fn is_of(&self, id: &Value) -> bool {
        self.fields.get("id") == Some(id) || self.is_error_of_nobody()
    }

    /// What is said of all that a client asked for: that it reads too slowly.
    fn is_error_of_nobody(&self) -> bool {
        !self.fields.contains_key("id") && self.text("status") == "error"
    }

    fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// An error where the scheduler says that it is one.
    fn checked(self) -> Result<Self> {
        if self.text("status") != "error" {
            return Ok(self);
        }
        let (code, message) = (self.text("code").to_owned(), self.text("error").to_owned());
        Err(IpcError::Refused { code, message })
    }
}

/// A message with nothing but its type.
pub fn message(kind: &str) -> Map<String, Value> {
    Map::from_iter([("type".to_owned(), kind.into())])
}

fn object(value: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        // Nothing that is sent is anything else.
        _ => Map::new(),
    }
}
