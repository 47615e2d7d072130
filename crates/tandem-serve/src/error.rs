//! Errors as the OpenAI API has them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tandem_grammar::GrammarError;
use tandem_model::ModelError;
use tandem_runtime::RuntimeError;
use utoipa::ToSchema;

/// Seconds after which a client may try again where the queue was full.
const RETRY_AFTER_S: u32 = 1;

/// What a client reads where something went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What went wrong.
    pub(crate) error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ErrorDetail {
    /// One line for people.
    pub(crate) message: String,
    /// The kind: `invalid_request_error`, `authentication_error`, `server_error` or `overloaded_error`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The field of the request that it is about.
    pub(crate) param: Option<String>,
    /// A name for programs.
    pub(crate) code: Option<&'static str>,
}

/// An answer that is an error.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) detail: ErrorDetail,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let detail = ErrorDetail { message: message.into(), kind, param: None, code: None };
        Self { status, detail }
    }

    /// The client asked for what cannot be.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = Some(param.into()).filter(|param| !param.is_empty());
        let mut error = Self::of_client(StatusCode::BAD_REQUEST, message);
        error.detail.param = param;
        error
    }

    /// As [`Self::invalid`], with another status.
    pub(crate) fn of_client(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// The key is missing or wrong.
    pub(crate) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message).code("invalid_api_key")
    }

    /// Too much is asked for at a time.
    pub(crate) fn overloaded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", message)
    }

    /// It is our fault.
    pub(crate) fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The answer took too long.
    pub(crate) fn timed_out(seconds: u64) -> Self {
        let message = format!("the answer was not complete within {seconds} s");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).code("timeout")
    }

    /// The same with a name for programs.
    pub(crate) fn code(mut self, code: &'static str) -> Self {
        self.detail.code = Some(code);
        self
    }

    /// The body.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody { error: self.detail.clone() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<&RuntimeError> for ApiError {
    fn from(error: &RuntimeError) -> Self {
        let message = error.to_string();
        match error {
            RuntimeError::Parameter { name, .. } => Self::invalid(*name, message),
            RuntimeError::EmptyPrompt | RuntimeError::TokenId { .. } => {
                Self::invalid("prompt", message)
            }
            RuntimeError::PromptTooLong { .. } => {
                Self::invalid("messages", message).code("context_length_exceeded")
            }
            RuntimeError::Constraint { .. } => Self::invalid("response_format", message),
            RuntimeError::QueueFull { .. } | RuntimeError::ElsewhereFull(_) => {
                Self::overloaded(message).code("queue_full")
            }
            RuntimeError::EngineStopped => Self::overloaded(message).code("stopped"),
            RuntimeError::ElsewhereGone => Self::overloaded(message).code("scheduler_gone"),
            RuntimeError::ElsewhereRefused(_) => {
                Self::of_client(StatusCode::BAD_REQUEST, message).code("scheduler_refused")
            }
            // The files behind the model are none of a client's business, and these may name them.
            RuntimeError::Model(_) => Self::server("the model could not be read"),
            _ => Self::server(message),
        }
    }
}

impl From<RuntimeError> for ApiError {
    fn from(error: RuntimeError) -> Self {
        Self::from(&error)
    }
}

/// What is said of the form that an answer is to have.
pub(crate) fn of_grammar(param: &str, error: GrammarError) -> ApiError {
    match error {
        GrammarError::Form(message) => ApiError::invalid(param, format!("{param}: {message}")),
        GrammarError::Model(message) => ApiError::server(message),
    }
}

/// What the tokenizer or the chat template says of a client's text; without the path of the file.
pub(crate) fn of_text(param: &str, error: &ModelError) -> ApiError {
    match error {
        ModelError::Template { message } => {
            ApiError::invalid(param, format!("the model's chat template: {message}"))
        }
        _ => ApiError::invalid(param, "the text cannot be expressed in the model's vocabulary"),
    }
}
