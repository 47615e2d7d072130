//! `/v1/chat/completions`.

mod calls;
mod conversation;
mod request;
mod response;
mod stream;
mod tools;

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::answers::Answers;
use crate::app::{App, Shared};
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::errors::{AnswerErrors, BodyErrors};
use crate::openai::models::check_model;
use crate::openai::{new_id, now, sse};
pub(crate) use conversation::Conversation;
pub(crate) use request::{ChatRequest, Message};
pub(crate) use tools::ChatTool;

use response::Head;
pub(crate) use response::{ChatCompletion, FINGERPRINT};
pub(crate) use stream::ChatChunk;
use stream::ChatChunks;

/// Has a conversation continued with an answer.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", security((), ("key" = [])),
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, events whose data is a piece of it, and `[DONE]`",
            content((ChatCompletion = "application/json"), (String = "text/event-stream"))),
        BodyErrors,
        AnswerErrors,
    ))]
pub(crate) async fn complete(
    State(app): State<Shared>,
    JsonBody(request): JsonBody<ChatRequest>,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let (request, (prompt, what)) = app.prepared(request, prepare).await?;
    let choices = request.common().choices()?;
    let texts = (0..choices as u64).map(|choice| {
        let mut what = what.clone();
        what.sampling.seed = what.sampling.seed.wrapping_add(choice);
        (prompt.clone(), what)
    });
    let answers = Answers::ask(&app, texts.collect(), begun)?;
    let head = Head {
        id: new_id("chatcmpl"),
        created: now(),
        model: app.backend.model().id.clone(),
        choices,
        logprobs: request.logprobs == Some(true),
        calls: request.may_call(),
    };
    if request.stream == Some(true) {
        let usage = request.stream_options.unwrap_or_default().include_usage == Some(true);
        return Ok(sse::stream(answers, ChatChunks::new(app, head, usage)));
    }
    let generated = answers.whole().await?;
    let completion = ChatCompletion::new(head, &app.backend.model().tokenizer, &generated);
    Ok(Json(completion).into_response())
}

/// The prompt, and what is to be generated after it.
fn prepare(
    app: &App,
    request: &ChatRequest,
) -> Result<(Vec<u32>, tandem_runtime::Request), ApiError> {
    let model = app.backend.model();
    check_model(app, request.model.as_deref())?;
    let mut what = request.common().request(model)?;
    what.max_tokens = request.max_tokens()?;
    what.logprobs = request.top_logprobs()?;
    what.constraint = request.constraint(app)?;
    let prompt = Conversation::new(&request.messages, request.tools()).prompt(model)?;
    Ok((prompt, what))
}
