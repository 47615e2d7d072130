//! `/v1/completions`.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tandem_model::detokenize::Special;
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::{Event, Generated, TokenLogprobs};
use utoipa::ToSchema;

use super::chat::FINGERPRINT;
use super::logprobs::CompletionLogprobs;
use super::models::check_model;
use super::params::{MAX_TOP_LOGPROBS, in_range, request};
use super::sse::Chunks;
use super::usage::Usage;
use super::{MAX_CHOICES, finish_reason, new_id, now, sse};
use crate::answers::Answers;
use crate::app::{App, Shared};
use crate::body::JsonBody;
use crate::error::{ApiError, of_text};
use crate::errors::{AnswerErrors, BodyErrors};

/// Tokens that are written where nothing is said of them, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;
/// Prompts that one request may have.
const MAX_PROMPTS: usize = 64;

request! {
    /// A text to continue.
    pub(crate) struct CompletionRequest {
        /// The text or its ids; or several.
        prompt: Prompt,
        /// Whether the answer begins with the prompt.
        echo: Option<bool>,
        /// Of how many of the most likely tokens to tell the log probabilities with each chosen one's; 0 tells only that.
        #[schema(minimum = 0, maximum = 20)]
        logprobs: Option<u32>,
        /// Accepted where it is `n`: no more answers are written than are given.
        best_of: Option<u32>,
        /// Accepted where it is empty: the model does not write towards an end.
        suffix: Option<String>,
    }
}

/// A text or its ids, or several.
#[derive(Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string, a list of token ids, or a list of either")]
pub(crate) enum Prompt {
    /// A text.
    Text(String),
    /// The ids of one.
    Ids(Vec<u32>),
    /// Texts.
    Texts(Vec<String>),
    /// The ids of each.
    AllIds(Vec<Vec<u32>>),
}

/// How texts go on.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion {
    /// Its name.
    id: String,
    /// `text_completion`
    object: &'static str,
    /// When it was asked for, in seconds since 1970.
    created: u64,
    /// The model.
    model: String,
    /// `n` for each prompt.
    choices: Vec<Choice>,
    /// Tokens that were used; in a stream only in the last piece, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    /// Tandem's version.
    system_fingerprint: &'static str,
}

/// How a text goes on.
#[derive(Serialize, ToSchema)]
struct Choice {
    /// The how manieth.
    index: usize,
    /// The text.
    text: String,
    /// Log probabilities, where they were asked for.
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; in a stream none before the end.
    finish_reason: Option<&'static str>,
}

/// Has texts continued.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", security((), ("key" = [])),
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "How they go on; with `stream`, events whose data is a piece of it, and `[DONE]`",
            content((Completion = "application/json"), (String = "text/event-stream"))),
        BodyErrors,
        AnswerErrors,
    ))]
pub(crate) async fn complete(
    State(app): State<Shared>,
    JsonBody(request): JsonBody<CompletionRequest>,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let (request, (texts, head)) = app.prepared(request, prepare).await?;
    let answers = Answers::ask(&app, texts, begun)?;
    if request.stream == Some(true) {
        let usage = request.stream_options.unwrap_or_default().include_usage == Some(true);
        return Ok(sse::stream(answers, CompletionChunks::new(app, head, usage)));
    }
    let generated = answers.whole().await?;
    Ok(Json(head.completion(&app.backend.model().tokenizer, &generated)).into_response())
}

/// What all pieces of an answer are told with.
struct Head {
    id: String,
    created: u64,
    model: String,
    choices: usize,
    logprobs: bool,
    /// What each prompt's answers begin with.
    echo: Option<Vec<String>>,
}

type Texts = Vec<(Vec<u32>, tandem_runtime::Request)>;

fn prepare(app: &App, request: &CompletionRequest) -> Result<(Texts, Head), ApiError> {
    let model = app.backend.model();
    check_model(app, request.model.as_deref())?;
    let choices = request.common().choices()?;
    check_own(request, choices)?;
    let mut what = request.common().request(model)?;
    what.max_tokens = Some(request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS) as usize);
    what.logprobs = request.logprobs.map(|top| top as usize);
    what.continues_prompt = true;
    let prompts = request.prompt.ids(&model.tokenizer)?;
    if prompts.is_empty() || prompts.len().saturating_mul(choices) > MAX_PROMPTS {
        let message = format!(
            "prompt: expected 1 to {MAX_PROMPTS} answers in all, found {} prompts with n = {choices}",
            prompts.len()
        );
        return Err(ApiError::invalid("prompt", message));
    }
    let text = |ids: &Vec<u32>| model.tokenizer.decode(ids, Special::Keep);
    let head = Head {
        id: new_id("cmpl"),
        created: now(),
        model: model.id.clone(),
        choices,
        logprobs: request.logprobs.is_some(),
        echo: (request.echo == Some(true)).then(|| prompts.iter().map(text).collect()),
    };
    let texts = prompts.into_iter().flat_map(|prompt| {
        let what = what.clone();
        (0..choices as u64).map(move |choice| {
            let mut what = what.clone();
            what.sampling.seed = what.sampling.seed.wrapping_add(choice);
            (prompt.clone(), what)
        })
    });
    Ok((texts.collect(), head))
}

/// What only this kind of request has.
fn check_own(request: &CompletionRequest, choices: usize) -> Result<(), ApiError> {
    let invalid =
        |param: &str, message: &str| Err(ApiError::invalid(param, format!("{param}: {message}")));
    in_range("logprobs", request.logprobs.unwrap_or(0), 0, MAX_TOP_LOGPROBS)?;
    if request.best_of.is_some_and(|best_of| best_of as usize != choices) {
        return invalid("best_of", "expected the same as n");
    }
    if request.suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
        return invalid("suffix", "this model does not write towards an end");
    }
    if request.echo == Some(true) && request.logprobs.is_some() {
        return invalid("echo", "not together with logprobs: those of a prompt are not kept");
    }
    Ok(())
}

impl Prompt {
    fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode = |text: &String| tokenizer.encode(text).map_err(|e| of_text("prompt", &e));
        let prompts = match self {
            Self::Text(text) => vec![encode(text)?],
            Self::Ids(ids) => vec![ids.clone()],
            Self::Texts(texts) => {
                texts.iter().take(MAX_PROMPTS + 1).map(encode).collect::<Result<_, _>>()?
            }
            Self::AllIds(all) => all.clone(),
        };
        Ok(prompts)
    }
}

impl Head {
    fn completion(self, tokenizer: &Tokenizer, generated: &[Generated]) -> Completion {
        let mut usage = Usage::default();
        for (number, generated) in generated.iter().enumerate() {
            usage.add(number, self.choices, generated);
        }
        let choices = generated.iter().enumerate().map(|(index, generated)| Choice {
            index,
            text: format!("{}{}", self.begins(index), generated.text),
            logprobs: self
                .logprobs
                .then(|| CompletionLogprobs::new(tokenizer, &generated.logprobs, 0).0),
            finish_reason: Some(finish_reason(generated.finish)),
        });
        let choices = choices.collect();
        self.piece(choices, Some(Some(usage)))
    }

    /// What an answer begins with.
    fn begins(&self, number: usize) -> &str {
        let echo = self.echo.as_ref().and_then(|echo| echo.get(number / self.choices));
        echo.map_or("", String::as_str)
    }

    fn piece(&self, choices: Vec<Choice>, usage: Option<Option<Usage>>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: FINGERPRINT,
        }
    }
}

/// Makes the pieces of all of a request's answers.
struct CompletionChunks {
    app: Shared,
    head: Head,
    /// Where each one's next token begins, in characters.
    offsets: Vec<usize>,
    wants_usage: bool,
    usage: Usage,
}

impl CompletionChunks {
    fn new(app: Shared, head: Head, wants_usage: bool) -> Self {
        let offsets = vec![0; MAX_PROMPTS.max(MAX_CHOICES)];
        Self { app, head, offsets, wants_usage, usage: Usage::default() }
    }

    fn piece(&self, choice: Choice) -> Completion {
        self.head.piece(vec![choice], self.wants_usage.then_some(None))
    }

    fn logprobs(&mut self, number: usize, tokens: &[TokenLogprobs]) -> Option<CompletionLogprobs> {
        let offset = self.offsets.get_mut(number).filter(|_| self.head.logprobs)?;
        let tokenizer = &self.app.backend.model().tokenizer;
        let (logprobs, next) = CompletionLogprobs::new(tokenizer, tokens, *offset);
        *offset = next;
        Some(logprobs)
    }
}

impl Chunks for CompletionChunks {
    type Chunk = Completion;

    fn begin(&mut self) -> Vec<Completion> {
        let prompts = self.head.echo.as_ref().map_or(0, Vec::len);
        let piece = |index| {
            let text = self.head.begins(index).to_owned();
            self.piece(Choice { index, text, logprobs: None, finish_reason: None })
        };
        (0..prompts * self.head.choices).map(piece).collect()
    }

    fn take(&mut self, number: usize, event: Event) -> Vec<Completion> {
        match event {
            Event::Tokens { logprobs, text, .. } => {
                let logprobs = self.logprobs(number, &logprobs);
                if text.is_empty() && logprobs.is_none() {
                    return Vec::new();
                }
                vec![self.piece(Choice { index: number, text, logprobs, finish_reason: None })]
            }
            Event::Finished(generated) => {
                self.usage.add(number, self.head.choices, &generated);
                let finish_reason = Some(finish_reason(generated.finish));
                let text = String::new();
                vec![self.piece(Choice { index: number, text, logprobs: None, finish_reason })]
            }
            // Told as an error.
            Event::Failed(_) => Vec::new(),
        }
    }

    fn end(&mut self) -> Vec<Completion> {
        let usage = self.wants_usage.then(|| self.head.piece(Vec::new(), Some(Some(self.usage))));
        usage.into_iter().collect()
    }
}
