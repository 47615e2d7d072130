//! What all handlers share, and which handler answers what.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tandem_grammar::Grammars;
use tokio::sync::{Semaphore, watch};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::backend::Backend;
use crate::dashboard::History;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::options::ServerOptions;
use crate::{access, dashboard, health, metrics, openai, openapi, telemetry, words};

/// Listeners of `/telemetry/stream` at a time.
const TELEMETRY_LISTENERS: usize = 32;

/// What all handlers share.
pub(crate) struct App {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) options: ServerOptions,
    /// Whether the name by which the server is called is looked at.
    pub(crate) checks_host: bool,
    pub(crate) grammars: Arc<Grammars>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) history: History,
    pub(crate) started: Instant,
    /// Seconds since 1970 at the start.
    pub(crate) created: u64,
    /// Whether the server is to stop.
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) telemetry_places: Arc<Semaphore>,
}

pub(crate) type Shared = Arc<App>;

impl App {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        options: ServerOptions,
        checks_host: bool,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let model = backend.model();
        let tokenizer = Arc::clone(&model.tokenizer);
        let grammars = Arc::new(Grammars::new(tokenizer, model.vocab_size, &model.stop_ids));
        let metrics = Arc::new(Metrics::new());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            backend,
            options,
            checks_host,
            grammars,
            metrics,
            history: History::default(),
            started: Instant::now(),
            created,
            stopping,
            telemetry_places: Arc::new(Semaphore::new(TELEMETRY_LISTENERS)),
        }
    }

    /// Runs what may take a while where it holds nobody up.
    pub(crate) async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = Arc::clone(self);
        let failed = |_| ApiError::server("the server failed at this request");
        tokio::task::spawn_blocking(move || work(&app)).await.map_err(failed)
    }

    /// What becomes of a request, and the request, which takes a while and so is done aside.
    pub(crate) async fn prepared<R: Send + 'static, T: Send + 'static>(
        self: &Arc<Self>,
        request: R,
        prepare: fn(&Self, &R) -> Result<T, ApiError>,
    ) -> Result<(R, T), ApiError> {
        let prepared = move |app: &Self| {
            let prepared = prepare(app, &request);
            prepared.map(|prepared| (request, prepared))
        };
        self.aside(prepared).await?
    }
}

/// Who answers what.
pub(crate) fn router(app: Shared) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*model}", get(openai::models::retrieve))
        .route("/v1/chat/completions", post(openai::chat::complete))
        .route("/v1/completions", post(openai::completions::complete))
        .route("/tokenize", post(words::tokenize))
        .route("/detokenize", post(words::detokenize))
        .route("/props", get(health::props))
        .route("/metrics", get(metrics::metrics))
        .route("/telemetry", get(telemetry::telemetry))
        .route("/telemetry/stream", get(telemetry::stream))
        .route("/trace", get(telemetry::trace))
        .route("/dashboard/state", get(dashboard::state))
        .route_layer(from_fn_with_state(Arc::clone(&app), access::require_key));
    let open = Router::new()
        .route("/", get(dashboard::page))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/openapi.json", get(openapi::document));
    let router = guarded
        .merge(open)
        .fallback(async || {
            ApiError::of_client(StatusCode::NOT_FOUND, "there is nothing at this path")
        })
        .method_not_allowed_fallback(async || {
            let message = "this path knows no such method";
            ApiError::of_client(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        // Bodies are limited where they are read, with a time limit besides.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(&app), access::require_host))
        .layer(from_fn(safe_headers));
    // Who wants no page of another origin does not even answer its questions.
    let origins = &app.options.cors_origins;
    let router = if origins.is_empty() { router } else { router.layer(cors(origins)) };
    router.layer(from_fn_with_state(Arc::clone(&app), metrics::count_request)).with_state(app)
}

/// Whose pages can read answers.
fn cors(origins: &[String]) -> CorsLayer {
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|o| HeaderValue::from_str(o).ok())),
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
}

async fn safe_headers(
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    let mut response = next.run(request).await;
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}
