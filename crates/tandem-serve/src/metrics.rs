//! Figures for Prometheus.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tandem_runtime::Generated;

use crate::app::{App, Shared};
use crate::error::{ApiError, ErrorBody};
use crate::memory;

/// The format of Prometheus' successor, which every Prometheus since 2.5 reads.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Float = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    path: String,
    method: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What is counted. Cheap to count; written out when somebody asks.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Route, Counter>,
    texts: Family<Outcome, Counter>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    connections: Gauge,
    running: Gauge,
    waiting: Gauge,
    ready: Gauge,
    resident: Gauge,
    uptime: Float,
}

/// Outcomes of texts, as the metric names them.
pub(crate) const OUTCOMES: [&str; 7] =
    ["stop", "length", "context_full", "cancelled", "failed", "timeout", "refused"];

impl Metrics {
    pub(crate) fn new() -> Self {
        let seconds = |limits: &[f64]| Histogram::new(limits.iter().copied());
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            texts: Family::default(),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            first_token: seconds(&[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]),
            between_tokens: seconds(&[
                0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0,
            ]),
            whole: seconds(&[0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]),
            connections: Gauge::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            ready: Gauge::default(),
            resident: Gauge::default(),
            uptime: Float::default(),
        };
        // Those that never happened are there too, as zeros.
        for outcome in OUTCOMES {
            drop(metrics.texts.get_or_create(&Outcome { outcome }));
        }
        metrics.registry = metrics.register();
        metrics
    }

    fn register(&self) -> Registry {
        let mut registry = Registry::with_prefix("tandem");
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register("texts", "Texts that ended, by how", self.texts.clone());
        let mut tokens = |name, help, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        tokens("prompt_tokens", "Tokens of prompts, cached ones included", &self.prompt_tokens);
        tokens("cached_tokens", "Tokens of prompts that were in a cache", &self.cached_tokens);
        tokens("generated_tokens", "Tokens written", &self.generated_tokens);
        let mut seconds = |name, help, histogram: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        seconds("first_token", "From a request to its first token", &self.first_token);
        seconds("between_tokens", "Between two tokens of a text", &self.between_tokens);
        seconds("text", "From a request to the end of its text", &self.whole);
        let mut gauge = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("connections", "Connections that are open", &self.connections);
        gauge("running_texts", "Texts that are read or written", &self.running);
        gauge("waiting_texts", "Texts that wait in the queue", &self.waiting);
        gauge("ready", "Whether new texts are taken", &self.ready);
        let resident = self.resident.clone();
        registry.register_with_unit("resident_memory", "Of the process", Unit::Bytes, resident);
        registry.register_with_unit("uptime", "Of the server", Unit::Seconds, self.uptime.clone());
        registry
    }

    /// A connection is open until what this returns is dropped.
    pub(crate) fn connection(&self) -> impl Drop + Send + use<> {
        struct Open(Gauge);
        impl Drop for Open {
            fn drop(&mut self) {
                self.0.dec();
            }
        }
        self.connections.inc();
        Open(self.connections.clone())
    }

    /// A text has ended as one of [`OUTCOMES`].
    pub(crate) fn ended(&self, outcome: &'static str) {
        self.texts.get_or_create(&Outcome { outcome }).inc();
    }

    /// Texts that have ended so.
    pub(crate) fn count(&self, outcome: &'static str) -> u64 {
        self.texts.get_or_create(&Outcome { outcome }).get()
    }

    /// Tokens of prompts, those that were cached, and tokens written, of texts that have ended; the last also of those
    /// that have not.
    pub(crate) fn tokens(&self) -> [u64; 3] {
        [&self.prompt_tokens, &self.cached_tokens, &self.generated_tokens].map(Counter::get)
    }

    fn encode(&self, app: &App) -> Result<String, std::fmt::Error> {
        let load = app.backend.load();
        let as_gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.running.set(as_gauge(load.running));
        self.waiting.set(as_gauge(load.waiting));
        self.ready.set(i64::from(app.backend.is_ready() && !*app.stopping.borrow()));
        if let Some(bytes) = memory::resident() {
            self.resident.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        self.uptime.set(app.started.elapsed().as_secs_f64());
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Watches one text.
pub(crate) struct TextMetrics {
    metrics: Arc<Metrics>,
    begun: Instant,
    newest: Option<Instant>,
    ended: bool,
}

impl TextMetrics {
    pub(crate) fn new(metrics: &Arc<Metrics>, begun: Instant) -> Self {
        Self { metrics: Arc::clone(metrics), begun, newest: None, ended: false }
    }

    /// So many tokens have come.
    pub(crate) fn tokens(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let now = Instant::now();
        match self.newest.replace(now) {
            None => self.metrics.first_token.observe((now - self.begun).as_secs_f64()),
            Some(before) => {
                let each = (now - before).as_secs_f64() / count as f64;
                (0..count).for_each(|_| self.metrics.between_tokens.observe(each));
            }
        }
        self.metrics.generated_tokens.inc_by(count as u64);
    }

    /// It has come to its end.
    pub(crate) fn finished(&mut self, generated: &Generated) {
        self.metrics.prompt_tokens.inc_by(generated.prompt_tokens as u64);
        self.metrics.cached_tokens.inc_by(generated.cached_tokens as u64);
        self.metrics.whole.observe(self.begun.elapsed().as_secs_f64());
        self.end(generated.finish.name());
    }

    /// It has ended in another way.
    pub(crate) fn end(&mut self, outcome: &'static str) {
        if !std::mem::replace(&mut self.ended, true) {
            self.metrics.ended(outcome);
        }
    }
}

impl Drop for TextMetrics {
    /// Nobody waits for it any more.
    fn drop(&mut self) {
        self.end("cancelled");
    }
}

/// Counts a request, and notes it where that is wanted.
pub(crate) async fn count_request(
    State(app): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    // Paths that nobody knows are one, lest a stranger fills the memory with names.
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str);
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "HEAD" | "OPTIONS") => known,
        _ => "other",
    };
    let mut route = Route { path: path.to_owned(), method: method.to_owned(), status: 0 };
    let response = next.run(request).await;
    route.status = response.status().as_u16();
    if app.options.log_requests {
        note(&route, begun.elapsed());
    }
    app.metrics.requests.get_or_create(&route).inc();
    response
}

fn note(route: &Route, time: Duration) {
    use std::io::Write;
    let Route { path, method, status } = route;
    let ms = time.as_secs_f64() * 1e3;
    // Where nobody reads, nothing is lost.
    let _ = writeln!(std::io::stderr(), "{method} {path} {status} {ms:.1} ms");
}

/// Figures for Prometheus, as OpenMetrics.
#[utoipa::path(get, path = "/metrics", tag = "figures", security((), ("key" = [])), responses(
    (status = 200, description = "Figures", content_type = "application/openmetrics-text", body = String),
    (status = 401, description = "No key, or a wrong one", body = ErrorBody),
))]
pub(crate) async fn metrics(State(app): State<Shared>) -> Result<Response, ApiError> {
    let text = app.aside(|app| app.metrics.encode(app)).await?;
    let text = text.map_err(|e| ApiError::server(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, FORMAT)], text).into_response())
}
