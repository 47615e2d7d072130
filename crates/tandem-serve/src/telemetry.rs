//! The engine's figures.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::app::Shared;
use crate::dashboard::{self, DashboardState};
use crate::error::{ApiError, ErrorBody};

/// Two a second.
pub(crate) const PERIOD: Duration = Duration::from_millis(500);

fn none() -> ApiError {
    ApiError::of_client(StatusCode::NOT_FOUND, "no telemetry is recorded")
}

/// The figures that clients of the scheduler read: docs/telemetry.md defines them.
#[utoipa::path(get, path = "/telemetry", tag = "figures", security((), ("key" = [])), responses(
    (status = 200, description = "Figures since the start", body = Object),
    (status = 401, description = "No key, or a wrong one", body = ErrorBody),
    (status = 404, description = "No telemetry is recorded", body = ErrorBody),
))]
pub(crate) async fn telemetry(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    app.aside(|app| app.backend.telemetry()).await?.map(Json).ok_or_else(none)
}

/// The recent past, for <https://ui.perfetto.dev>.
#[utoipa::path(get, path = "/trace", tag = "figures", security((), ("key" = [])), responses(
    (status = 200, description = "A trace in JSON", body = Object),
    (status = 401, description = "No key, or a wrong one", body = ErrorBody),
    (status = 404, description = "No telemetry is recorded", body = ErrorBody),
))]
pub(crate) async fn trace(State(app): State<Shared>) -> Result<Response, ApiError> {
    let trace = app.aside(|app| app.backend.trace()).await?.ok_or_else(none)?;
    let name = "attachment; filename=\"tandem-trace.json\"";
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, trace).into_response())
}

/// What the dashboard shows, twice a second, as server-sent events.
#[utoipa::path(get, path = "/telemetry/stream", tag = "figures", security((), ("key" = [])), responses(
    (status = 200, description = "Events whose data is a DashboardState", content_type = "text/event-stream", body = String),
    (status = 401, description = "No key, or a wrong one", body = ErrorBody),
    (status = 503, description = "Too many listen", body = ErrorBody),
))]
pub(crate) async fn stream(
    State(app): State<Shared>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let place = app.telemetry_places.clone().try_acquire_owned();
    let place = place.map_err(|_| ApiError::overloaded("too many listen to this already"))?;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopping = app.stopping.clone();
    let events = stream::unfold((app, ticks, stopping, place), |mut all| async move {
        let (app, ticks, stopping, _) = &mut all;
        tokio::select! {
            // Whoever listens must not keep the server from stopping.
            _ = stopping.wait_for(|&stopping| stopping) => return None,
            _ = ticks.tick() => {}
        }
        let state: DashboardState = dashboard::current(app).await.ok()?;
        let event = Event::default().json_data(&state).ok()?;
        Some((Ok(event), all))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}
