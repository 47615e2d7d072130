//! The page for people, and what it shows.

mod page;
mod state;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use tandem_runtime::EngineState;
use tokio::time::{MissedTickBehavior, interval};

use crate::app::{App, Shared};
use crate::error::{ApiError, ErrorBody};
use crate::memory;
use crate::telemetry::PERIOD;
pub(crate) use state::{
    BandwidthFigures, BandwidthSample, DashboardState, ExpertFigures, MemoryFigures, ModelFigures,
    RequestFigures, TokenFigures, TokenSample,
};

/// Points of the curves: a minute's.
const POINTS: usize = 120;
/// Bytes of a megabyte.
const MB: f64 = 1e6;

/// The dashboard.
#[utoipa::path(get, path = "/", tag = "server", security(()), responses(
    (status = 200, description = "A page", content_type = "text/html", body = String),
))]
pub(crate) async fn page() -> impl IntoResponse {
    // Nothing from elsewhere can run in it, and no other page can show it as its own.
    let policy = "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; \
                  img-src 'self' data: blob:; frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(page::PAGE))
}

/// What the dashboard shows: docs/server.md defines the fields.
#[utoipa::path(get, path = "/dashboard/state", tag = "figures", security((), ("key" = [])), responses(
    (status = 200, description = "Figures of now", body = DashboardState),
    (status = 401, description = "No key, or a wrong one", body = ErrorBody),
))]
pub(crate) async fn state(State(app): State<Shared>) -> Result<Json<DashboardState>, ApiError> {
    current(&app).await.map(Json)
}

/// The figures of now.
pub(crate) async fn current(app: &Arc<App>) -> Result<DashboardState, ApiError> {
    app.aside(look).await
}

/// The curves so far, oldest first.
#[derive(Default)]
pub(crate) struct History(Mutex<VecDeque<(TokenSample, BandwidthSample)>>);

impl History {
    fn push(&self, sample: (TokenSample, BandwidthSample)) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push_back(sample);
        if samples.len() > POINTS {
            samples.pop_front();
        }
    }

    fn curves(&self) -> (Vec<TokenSample>, Vec<BandwidthSample>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().unzip()
    }
}

/// Adds a point to the curves twice a second, until the server stops.
pub(crate) async fn record(app: Arc<App>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopping = app.stopping.clone();
    loop {
        tokio::select! {
            _ = stopping.wait_for(|&stopping| stopping) => return,
            _ = ticks.tick() => {}
        }
        let t_s = app.started.elapsed().as_secs_f64();
        let point = app.aside(move |app| {
            let rates = app.backend.rates();
            app.history.push((
                TokenSample {
                    t_s,
                    prompt_per_s: rates.prompt_per_s,
                    generated_per_s: rates.generated_per_s,
                },
                BandwidthSample {
                    t_s,
                    cpu_gbps: rates.cpu_gbps,
                    igpu_gbps: rates.igpu_gbps,
                    total_gbps: rates.total_gbps,
                },
            ));
        });
        let _ = point.await;
    }
}

fn look(app: &App) -> DashboardState {
    let model = app.backend.model();
    let EngineState { bandwidth, token, expert_counts, timeline, plan } = app.backend.state();
    let rates = app.backend.rates();
    let (load, capacity) = (app.backend.load(), app.backend.capacity());
    let (tokens, bandwidths) = app.history.curves();
    let [prompt_total, cached_total, generated_total] = app.metrics.tokens();
    let count = |outcomes: &[&'static str]| outcomes.iter().map(|o| app.metrics.count(o)).sum();
    DashboardState {
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: app.started.elapsed().as_secs_f64(),
        model: ModelFigures {
            id: model.id.clone(),
            context: model.context,
            layers: model.layers,
            experts: model.experts,
            experts_per_token: model.experts_per_token,
        },
        tokens: TokenFigures {
            prompt_per_s: rates.prompt_per_s,
            generated_per_s: rates.generated_per_s,
            prompt_total,
            cached_total,
            generated_total,
            history: tokens,
        },
        requests: RequestFigures {
            running: load.running,
            waiting: load.waiting,
            max_running: capacity.running,
            max_waiting: capacity.waiting,
            completed: count(&["stop", "length", "context_full"]),
            failed: count(&["failed", "timeout"]),
            cancelled: count(&["cancelled"]),
            refused: count(&["refused"]),
        },
        memory: MemoryFigures {
            resident_mb: memory::resident().map(|bytes| bytes as f64 / MB),
            peak_mb: memory::peak().map(|bytes| bytes as f64 / MB),
        },
        bandwidth: BandwidthFigures {
            state: bandwidth,
            cpu_gbps: rates.cpu_gbps,
            igpu_gbps: rates.igpu_gbps,
            total_gbps: rates.total_gbps,
            history: bandwidths,
        },
        token,
        experts: ExpertFigures { counts: expert_counts },
        timeline,
        plan,
    }
}
