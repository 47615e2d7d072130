//! What clients have asked for and not got yet.

use std::collections::HashMap;

use serde_json::Value;
use tandem_runtime::{Cancel, Event, RuntimeError};

use super::clients::{Queued, Tokens};
use super::sockets::{ClientId, Route};
use crate::protocol::{Answer, Fault, GenerateResult, TokenLogprob};

/// Requests that are not answered yet, at most: more than the engine and the queues of packets take.
pub(super) const MAX_WORKS: usize = 1024;

/// Something that somebody tells the sockets' thread.
pub(super) enum Report {
    /// News of a request.
    Of {
        /// Its number.
        work: u64,
        /// What happened.
        news: News,
    },
    /// The server shall end.
    Stop,
}

/// What happened to a request.
pub(super) enum News {
    /// A text is about to be handed to the engine.
    Prepared {
        /// The prompt as ids.
        prompt_ids: Vec<u32>,
        /// Start of its random numbers.
        seed: u64,
    },
    /// The engine has it. What it tells of it may have come before this.
    Accepted(Cancel),
    /// The engine tells of a text.
    Text(Event),
    /// The engine tells no more of a text.
    Silence,
    /// It is done.
    Done(Box<Answer>),
}

/// Requests by their numbers.
#[derive(Default)]
pub(super) struct Works {
    works: HashMap<u64, Work>,
    next: u64,
}

struct Work {
    client: ClientId,
    route: Route,
    id: Option<Value>,
    kind: Kind,
    /// Whether the client has ended it; the engine may not have it yet.
    cancelled: bool,
    /// Start of a text's random numbers.
    seed: u64,
    /// What a stream begins with, until that is sent.
    begun: Option<Answer>,
    /// What ends a text, also when the request is forgotten.
    cancel: Option<Cancel>,
    /// Whether the engine tells no more of a text, and nobody has said that it took it: it did not, and why follows, or it
    /// has stopped since.
    silent: bool,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A text, as it comes.
    Stream,
    /// A text at its end.
    Text,
    /// Something else.
    Other,
}

impl Works {
    pub(super) fn len(&self) -> usize {
        self.works.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// A new request; answers its number.
    pub(super) fn begin(
        &mut self,
        client: ClientId,
        route: Route,
        id: Option<Value>,
        kind: Kind,
    ) -> u64 {
        self.next += 1;
        let (begun, cancel) = (None, None);
        let (cancelled, seed, silent) = (false, 0, false);
        let work = Work { client, route, id, kind, cancelled, seed, begun, cancel, silent };
        self.works.insert(self.next, work);
        self.next
    }

    /// Ends texts of a client: those with that id, or all; answers how many.
    pub(super) fn cancel(&mut self, client: &ClientId, id: Option<&Value>) -> usize {
        let wanted = |work: &&mut Work| {
            let called = id.is_none_or(|id| work.id.as_ref() == Some(id));
            work.client == *client && work.kind != Kind::Other && called
        };
        let mut ended = 0;
        for work in self.works.values_mut().filter(wanted) {
            work.cancel();
            ended += 1;
        }
        ended
    }

    /// Ends all texts.
    pub(super) fn cancel_all(&mut self) {
        self.works.values_mut().for_each(Work::cancel);
    }

    /// A client does not wait for anything any more. Its texts end, since what ends them is dropped.
    pub(super) fn forget(&mut self, client: &ClientId) {
        self.works.retain(|_, work| work.client != *client);
    }

    /// Hears news; answers what to send of it, and to whom.
    pub(super) fn hear(&mut self, number: u64, news: News) -> Option<(ClientId, Vec<Queued>)> {
        // Of a request that was forgotten: a text that the engine has taken ends here, since what ends it is dropped.
        let work = self.works.get_mut(&number)?;
        let (client, mut queued) = (work.client.clone(), Vec::new());
        if work.hear(number, news, &mut queued) {
            self.works.remove(&number);
        }
        Some((client, queued))
    }
}

impl Work {
    fn cancel(&mut self) {
        self.cancelled = true;
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }

    /// Adds what is to be sent; answers whether nothing comes after it.
    fn hear(&mut self, number: u64, news: News, queued: &mut Vec<Queued>) -> bool {
        let success = |event| Answer::new("success", "generate").with("event", event);
        let answer = match news {
            News::Prepared { prompt_ids, seed } => {
                self.seed = seed;
                if self.kind == Kind::Stream {
                    let begun = success("begun").with("prompt_ids", prompt_ids).with("seed", seed);
                    self.begun = Some(begun);
                }
                return false;
            }
            News::Accepted(_) if self.silent => stopped(),
            News::Accepted(cancel) => {
                if self.cancelled {
                    cancel.cancel();
                }
                self.cancel = Some(cancel);
                self.begin(queued);
                return false;
            }
            News::Text(Event::Tokens { .. }) if self.kind != Kind::Stream => return false,
            News::Text(Event::Tokens { ids, logprobs, text }) => {
                self.begin(queued);
                let logprobs = TokenLogprob::all(logprobs);
                let tokens = Tokens { work: number, id: self.id.clone(), ids, logprobs, text };
                queued.push(Queued::Tokens(self.route, tokens));
                return false;
            }
            News::Text(Event::Finished(generated)) => {
                self.begin(queued);
                let result = GenerateResult::new(generated, self.seed);
                success("finished").with("result", result)
            }
            News::Text(Event::Failed(error)) => Answer::error(&Fault::from(&*error)),
            News::Silence if self.cancel.is_none() => {
                self.silent = true;
                return false;
            }
            // Where the text had ended, the request is no more, and nobody hears of this.
            News::Silence => stopped(),
            News::Done(answer) => *answer,
        };
        queued.push(self.queued(answer));
        true
    }

    /// What a stream begins with comes before everything else of it.
    fn begin(&mut self, queued: &mut Vec<Queued>) {
        if let Some(begun) = self.begun.take() {
            queued.push(self.queued(begun));
        }
    }

    fn queued(&self, answer: Answer) -> Queued {
        Queued::Answer(self.route, answer.to(self.id.as_ref()))
    }
}

fn stopped() -> Answer {
    Answer::error(&Fault::from(&RuntimeError::EngineStopped))
}
