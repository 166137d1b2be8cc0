//! The metrics interface, port 15020.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use tokio::sync::Semaphore;

use super::server::{Answer, aside, empty, serve, text, typed};
use crate::telemetry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// Answers `/metrics` and `/stats/prometheus`, until the future is dropped (that closes the port at once).
///
/// The body is OpenMetrics text whoever asks, as Istio's scrapers expect; the content type says so to those
/// who name it in `Accept`.
///
/// # Errors
/// If the current runtime cannot take the listener.
pub async fn stats(listener: TcpListener, registry: Registry) -> io::Result<Infallible> {
    let turns = Arc::new(Semaphore::new(1));
    serve(listener, move |request| {
        let (registry, turns) = (registry.clone(), Arc::clone(&turns));
        async move {
            match request.uri().path() {
                "/metrics" | "/stats/prometheus" => page(registry, turns, request.headers()).await,
                _ => empty(StatusCode::NOT_FOUND),
            }
        }
    })
    .await
}

async fn page(registry: Registry, turns: Arc<Semaphore>, headers: &HeaderMap) -> Answer {
    let content_type = if accepts_open_metrics(headers) { OPEN_METRICS_TYPE } else { TEXT_TYPE };
    match aside(turns, move || registry.page()).await {
        Ok(page) => typed(StatusCode::OK, content_type, page),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

/// Whether one entry of `Accept` is OpenMetrics; parameters, case and space do not count.
fn accepts_open_metrics(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|entry| entry.split(';').next())
        .any(|entry| entry.trim().eq_ignore_ascii_case(OPEN_METRICS))
}
