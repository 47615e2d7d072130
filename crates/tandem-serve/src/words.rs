//! From text to ids and back.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use tandem_model::detokenize::Special;
use utoipa::ToSchema;

use crate::app::{App, Shared};
use crate::body::JsonBody;
use crate::error::{ApiError, of_text};
use crate::errors::BodyErrors;
use crate::openai::chat::{ChatTool, Conversation, Message};

/// A text, or a conversation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
    /// A text; special tokens written in it are recognised.
    content: Option<String>,
    /// Or a conversation, as the model's chat template puts it.
    messages: Option<Vec<Message>>,
    /// Tools that may be called in the conversation.
    tools: Option<Vec<ChatTool>>,
    /// Whether to tell the tokens' texts too.
    with_pieces: Option<bool>,
}

/// Its ids.
#[derive(Serialize, ToSchema)]
pub(crate) struct Tokens {
    /// The ids.
    tokens: Vec<u32>,
    /// How many.
    count: usize,
    /// Tokens that one text may have.
    max_model_len: usize,
    /// The tokens' texts, where they were asked for; what is no whole character is U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pieces: Option<Vec<String>>,
}

/// The ids of a text or of a conversation.
#[utoipa::path(post, path = "/tokenize", tag = "text", security((), ("key" = [])),
    request_body = TokenizeRequest,
    responses(
        (status = 200, description = "The ids", body = Tokens),
        BodyErrors,
    ))]
pub(crate) async fn tokenize(
    State(app): State<Shared>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<Tokens>, ApiError> {
    app.aside(move |app| ids(app, &request)).await?.map(Json)
}

fn ids(app: &App, request: &TokenizeRequest) -> Result<Tokens, ApiError> {
    let model = app.backend.model();
    let tokens = match (&request.content, &request.messages) {
        (Some(content), None) if request.tools.is_none() => {
            model.tokenizer.encode(content).map_err(|e| of_text("content", &e))?
        }
        (None, Some(messages)) => {
            let tools = request.tools.as_deref().unwrap_or_default();
            Conversation::new(messages, tools).prompt(model)?
        }
        _ => {
            let message = "content, messages: expected one of the two; tools go with messages";
            return Err(ApiError::invalid("content", message));
        }
    };
    let piece = |&id: &u32| {
        let bytes = model.tokenizer.token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pieces = request.with_pieces.unwrap_or(false).then(|| tokens.iter().map(piece).collect());
    Ok(Tokens { count: tokens.len(), tokens, max_model_len: model.context, pieces })
}

/// Ids of a text.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    /// The ids; those without a token are passed over.
    tokens: Vec<u32>,
    /// Whether special tokens are left out.
    skip_special: Option<bool>,
}

/// The text.
#[derive(Serialize, ToSchema)]
pub(crate) struct Content {
    /// The text.
    content: String,
}

/// The text of ids.
#[utoipa::path(post, path = "/detokenize", tag = "text", security((), ("key" = [])),
    request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "The text", body = Content),
        BodyErrors,
    ))]
pub(crate) async fn detokenize(
    State(app): State<Shared>,
    JsonBody(request): JsonBody<DetokenizeRequest>,
) -> Result<Json<Content>, ApiError> {
    let special = if request.skip_special == Some(true) { Special::Skip } else { Special::Keep };
    let decode = move |app: &App| app.backend.model().tokenizer.decode(&request.tokens, special);
    let content = app.aside(decode).await?;
    Ok(Json(Content { content }))
}
