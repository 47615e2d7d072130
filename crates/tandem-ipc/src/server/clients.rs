//! What is on its way to each client.

use std::collections::{HashMap, VecDeque};

use serde_json::Value;

use super::sockets::{ClientId, Route, Sent, Sockets};
use crate::protocol::{Answer, Code, Fault, IdLogprob, TokenLogprob};

/// Answers that wait for a client, at most.
const MAX_WAITING: usize = 256;
/// Their bytes, at most.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Answers that clients have not taken yet. ZeroMQ takes a few of each client, and what comes after them waits here:
/// tokens of a text become one answer, so a slow reader's text costs no more than the text itself. Of a client that
/// leaves too much unread everything is dropped but the news of that.
#[derive(Default)]
pub(super) struct Clients {
    waiting: HashMap<ClientId, Waiting>,
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Queued>,
    bytes: usize,
}

/// Something for a client.
pub(super) enum Queued {
    /// An answer.
    Answer(Route, Answer),
    /// New tokens of a text.
    Tokens(Route, Tokens),
}

/// New tokens of a text.
pub(super) struct Tokens {
    /// The text.
    pub(super) work: u64,
    /// What the client calls it.
    pub(super) id: Option<Value>,
    pub(super) ids: Vec<u32>,
    /// One for each id where they were asked for, else none.
    pub(super) logprobs: Vec<TokenLogprob>,
    pub(super) text: String,
}

/// What a client made of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// It has it, or will.
    Yes,
    /// It is gone.
    Gone,
    /// It has left too much unread.
    TooSlow,
}

impl Clients {
    /// Sends something, or has it wait.
    pub(super) fn send(&mut self, sockets: &Sockets, client: &ClientId, queued: Queued) -> Took {
        if let Some(waiting) = self.waiting.get_mut(client) {
            waiting.push(queued);
            return waiting.check();
        }
        match queued.send(sockets, client) {
            Sent::Yes => Took::Yes,
            Sent::Gone => Took::Gone,
            Sent::Full => {
                let waiting = self.waiting.entry(client.clone()).or_default();
                waiting.push(queued);
                waiting.check()
            }
        }
    }

    /// Tries to send what waits; answers who is gone.
    pub(super) fn retry(&mut self, sockets: &Sockets) -> Vec<ClientId> {
        let mut gone = Vec::new();
        self.waiting.retain(|client, waiting| {
            while let Some(queued) = waiting.queue.front() {
                match queued.send(sockets, client) {
                    Sent::Yes => {
                        waiting.bytes = waiting.bytes.saturating_sub(queued.bytes());
                        waiting.queue.pop_front();
                    }
                    Sent::Full => return true,
                    Sent::Gone => {
                        gone.push(client.clone());
                        return false;
                    }
                }
            }
            false
        });
        gone
    }

    /// Nobody waits for these any more.
    pub(super) fn forget(&mut self, client: &ClientId) {
        self.waiting.remove(client);
    }

    /// Whether anything waits.
    pub(super) fn any_waits(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Waiting {
    fn push(&mut self, queued: Queued) {
        self.bytes += queued.bytes();
        if let Queued::Tokens(_, new) = &queued {
            let same = self.queue.iter_mut().rev().find_map(|queued| match queued {
                Queued::Tokens(_, tokens) if tokens.work == new.work => Some(tokens),
                _ => None,
            });
            if let Some(tokens) = same {
                tokens.ids.extend_from_slice(&new.ids);
                tokens.logprobs.extend_from_slice(&new.logprobs);
                tokens.text.push_str(&new.text);
                return;
            }
        }
        self.queue.push_back(queued);
    }

    /// Drops everything where it is too much.
    fn check(&mut self) -> Took {
        if self.queue.len() <= MAX_WAITING && self.bytes <= MAX_WAITING_BYTES {
            return Took::Yes;
        }
        let lost = self.queue.len();
        let route = self.queue.front().map_or_else(Route::default, Queued::route);
        let message = format!(
            "this client reads too slowly: {lost} answers were dropped, and all that it had asked for was ended"
        );
        let answer = Answer::error(&Fault { code: Code::SlowReader, message });
        self.queue = VecDeque::from([Queued::Answer(route, answer)]);
        self.bytes = 0;
        Took::TooSlow
    }
}

impl Queued {
    fn route(&self) -> Route {
        match self {
            Self::Answer(route, _) | Self::Tokens(route, _) => *route,
        }
    }

    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        match self {
            // JSON is short where there is no tensor, but a summary has all ids of a text.
            Self::Answer(_, answer) => answer.size(),
            Self::Tokens(_, tokens) => {
                let tops = tokens.logprobs.iter().map(|token| 1 + token.top.len()).sum::<usize>();
                4 * tokens.ids.len() + tokens.text.len() + tops * size_of::<IdLogprob>()
            }
        }
    }

    fn send(&self, sockets: &Sockets, client: &[u8]) -> Sent {
        let frames = match self {
            Self::Answer(_, answer) => answer.frames(),
            Self::Tokens(_, tokens) => tokens.answer().frames(),
        };
        sockets.send(client, self.route(), &frames)
    }
}

impl Tokens {
    fn answer(&self) -> Answer {
        let answer = Answer::new("success", "generate")
            .with("event", "tokens")
            .with("ids", &self.ids)
            .with("text", &self.text)
            .to(self.id.as_ref());
        match self.logprobs.is_empty() {
            true => answer,
            false => answer.with("logprobs", &self.logprobs),
        }
    }
}
