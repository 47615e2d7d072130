//! An answer to a conversation, piece by piece.

use serde::Serialize;
use tandem_runtime::{Event, TokenLogprobs};
use utoipa::ToSchema;

use super::calls::{Calls, Part};
use super::response::{FINGERPRINT, Head, calls_reason};
use crate::app::Shared;
use crate::openai::finish_reason;
use crate::openai::logprobs::ChatLogprobs;
use crate::openai::sse::Chunks;
use crate::openai::usage::Usage;

/// A piece of an answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatChunk {
    /// The answer's name.
    id: String,
    /// `chat.completion.chunk`
    object: &'static str,
    /// When it was asked for, in seconds since 1970.
    created: u64,
    /// The model.
    model: String,
    /// What is new, of one of the answers; nothing in the piece that says the usage.
    choices: Vec<ChunkChoice>,
    /// Tokens that were used, in the last piece; only where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    /// Tandem's version.
    system_fingerprint: &'static str,
}

/// What is new of one of the answers.
#[derive(Serialize, ToSchema)]
struct ChunkChoice {
    /// Of which.
    index: usize,
    /// What is new.
    delta: Delta,
    /// Log probabilities of the tokens that are new, where they were asked for.
    logprobs: Option<ChatLogprobs>,
    /// Why it has ended, if it has.
    finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Default, Serialize, ToSchema)]
struct Delta {
    /// `assistant`, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// More of calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallDelta>,
}

/// More of a call of a tool.
#[derive(Serialize, ToSchema)]
struct CallDelta {
    /// Of which.
    index: usize,
    /// Its name for the answer to it, at its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `function`, at its beginning.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// The function.
    function: FunctionDelta,
}

/// More of a call's function.
#[derive(Serialize, ToSchema)]
struct FunctionDelta {
    /// Its name, at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// More of its arguments' JSON.
    arguments: String,
}

/// Makes the pieces of all of a request's answers.
pub(super) struct ChatChunks {
    app: Shared,
    head: Head,
    /// What each has called.
    calls: Vec<Calls>,
    wants_usage: bool,
    usage: Usage,
}

impl ChatChunks {
    pub(super) fn new(app: Shared, head: Head, wants_usage: bool) -> Self {
        let calls = (0..head.choices).map(|_| Calls::default()).collect();
        Self { app, head, calls, wants_usage, usage: Usage::default() }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage: self.wants_usage.then_some(usage),
            system_fingerprint: FINGERPRINT,
        }
    }

    fn one(&self, index: usize, delta: Delta) -> ChatChunk {
        self.chunk(vec![ChunkChoice { index, delta, logprobs: None, finish_reason: None }], None)
    }

    /// What an answer says in words and calls.
    fn parts(&mut self, number: usize, text: &str) -> Vec<Delta> {
        if !self.head.calls {
            let content = Some(text.to_owned()).filter(|text| !text.is_empty());
            return content.map(|text| Delta::of(Part::Text(text))).into_iter().collect();
        }
        let Some(calls) = self.calls.get_mut(number) else { return Vec::new() };
        calls.push(text).into_iter().map(Delta::of).collect()
    }

    fn tokens(&mut self, number: usize, tokens: &[TokenLogprobs], text: &str) -> Vec<ChatChunk> {
        let deltas = self.parts(number, text);
        let mut chunks: Vec<_> = deltas.into_iter().map(|delta| self.one(number, delta)).collect();
        if self.head.logprobs {
            if chunks.is_empty() {
                // The tokens have completed no text yet.
                chunks.push(
                    self.one(number, Delta { content: Some(String::new()), ..Delta::default() }),
                );
            }
            let tokenizer = &self.app.backend.model().tokenizer;
            let first = chunks.first_mut().and_then(|chunk| chunk.choices.first_mut());
            if let Some(choice) = first {
                choice.logprobs = Some(ChatLogprobs::new(tokenizer, tokens));
            }
        }
        chunks
    }
}

impl Chunks for ChatChunks {
    type Chunk = ChatChunk;

    fn begin(&mut self) -> Vec<ChatChunk> {
        let role =
            || Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        (0..self.head.choices).map(|index| self.one(index, role())).collect()
    }

    fn take(&mut self, number: usize, event: Event) -> Vec<ChatChunk> {
        match event {
            Event::Tokens { logprobs, text, .. } => self.tokens(number, &logprobs, &text),
            Event::Finished(generated) => {
                self.usage.add(number, self.head.choices, &generated);
                let calls = self.calls.get_mut(number).filter(|_| self.head.calls);
                let (rest, any) = calls.map_or((Vec::new(), false), |c| (c.finish(), c.any()));
                let mut chunks: Vec<_> =
                    rest.into_iter().map(|part| self.one(number, Delta::of(part))).collect();
                let reason =
                    if any { calls_reason(&generated) } else { finish_reason(generated.finish) };
                let end = ChunkChoice {
                    index: number,
                    delta: Delta::default(),
                    logprobs: None,
                    finish_reason: Some(reason),
                };
                chunks.push(self.chunk(vec![end], None));
                chunks
            }
            // Told as an error.
            Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<ChatChunk> {
        let usage = self.wants_usage.then(|| self.chunk(Vec::new(), Some(self.usage)));
        usage.into_iter().collect()
    }
}

impl Delta {
    fn of(part: Part) -> Self {
        let call = |index, id: Option<String>, name, arguments| {
            let kind = id.is_some().then_some("function");
            let function = FunctionDelta { name, arguments };
            Self { tool_calls: vec![CallDelta { index, id, kind, function }], ..Self::default() }
        };
        match part {
            Part::Text(text) => Self { content: Some(text), ..Self::default() },
            Part::Call { index, id, name } => call(index, Some(id), Some(name), String::new()),
            Part::Arguments { index, text } => call(index, None, None, text),
        }
    }
}
