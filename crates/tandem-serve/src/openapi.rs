//! The OpenAPI document.

use axum::Json;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use crate::openai::chat::ChatChunk;
use crate::openai::{chat, completions, models};
use crate::{dashboard, health, metrics, telemetry, words};

#[derive(OpenApi)]
#[openapi(
    info(title = "Tandem", description = "The OpenAI API, and figures of the engine behind it"),
    paths(
        models::list,
        models::retrieve,
        chat::complete,
        completions::complete,
        words::tokenize,
        words::detokenize,
        health::health,
        health::ready,
        health::props,
        metrics::metrics,
        telemetry::telemetry,
        telemetry::stream,
        telemetry::trace,
        dashboard::state,
        dashboard::page,
        document,
    ),
    components(schemas(ChatChunk)),
    modifiers(&Key)
)]
struct Api;

/// The key, where the server wants one.
struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "server", security(()), responses(
    (status = 200, description = "The document", body = Object),
))]
pub(crate) async fn document() -> Json<Document> {
    Json(Api::openapi())
}
