//! How the server is, and what it is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::Shared;
use crate::error::{ApiError, ErrorBody};
use crate::openai::MAX_CHOICES;

/// How the server is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`
    status: &'static str,
}

/// Whether the server runs.
#[utoipa::path(get, path = "/health", tag = "server", security(()), responses(
    (status = 200, description = "It does", body = Health),
))]
pub(crate) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether the server takes texts: not while it stops.
#[utoipa::path(get, path = "/ready", tag = "server", security(()), responses(
    (status = 200, description = "It does", body = Health),
    (status = 500, description = "The server failed", body = ErrorBody),
    (status = 503, description = "It does not, or not any more", body = ErrorBody),
))]
pub(crate) async fn ready(State(app): State<Shared>) -> Result<Json<Health>, ApiError> {
    if *app.stopping.borrow() {
        return Err(ApiError::overloaded("the server is stopping").code("stopping"));
    }
    if !app.aside(|app| app.backend.is_ready()).await? {
        return Err(ApiError::overloaded("the engine does not answer").code("not_ready"));
    }
    Ok(Json(Health { status: "ok" }))
}

/// What the server is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Props {
    /// Tandem's version.
    version: &'static str,
    /// The model's name.
    model: String,
    /// Tokens that one text may have.
    context: usize,
    /// Tokens that all texts together have room for in the KV cache; null where nobody tells.
    kv_tokens: Option<usize>,
    /// Ids of tokens are below this.
    vocab_size: usize,
    /// Whether the model has a chat template.
    has_chat_template: bool,
    /// Texts that are read or written at a time.
    total_slots: usize,
    /// Texts that may wait.
    max_waiting: usize,
    /// Answers that one request may ask for.
    max_choices: usize,
    /// Bytes that a request's body may have.
    max_body_bytes: usize,
}

/// What the server is, and what it may be asked for.
#[utoipa::path(get, path = "/props", tag = "server", security((), ("key" = [])), responses(
    (status = 200, description = "Properties", body = Props),
    (status = 401, description = "No key, or a wrong one", body = ErrorBody),
))]
pub(crate) async fn props(State(app): State<Shared>) -> (StatusCode, Json<Props>) {
    let model = app.backend.model();
    let capacity = app.backend.capacity();
    let props = Props {
        version: env!("CARGO_PKG_VERSION"),
        model: model.id.clone(),
        context: model.context,
        kv_tokens: model.kv_tokens,
        vocab_size: model.vocab_size,
        has_chat_template: model.template.is_some(),
        total_slots: capacity.running,
        max_waiting: capacity.waiting,
        max_choices: MAX_CHOICES,
        max_body_bytes: app.options.limits.body_bytes,
    };
    (StatusCode::OK, Json(props))
}
