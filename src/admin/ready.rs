//! The readiness interface, port 15021: may this node be given pods?

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;

use http::{Method, StatusCode};

use super::server::{Answer, empty, serve, text};
use crate::telemetry::Readiness;

/// Answers `GET /healthz/ready`, until the future is dropped (that closes the port at once).
///
/// # Errors
/// If the current runtime cannot take the listener.
pub async fn readiness(listener: TcpListener, readiness: Readiness) -> io::Result<Infallible> {
    serve(listener, move |request| {
        std::future::ready(answer(request.method(), request.uri().path(), &readiness))
    })
    .await
}

fn answer(method: &Method, path: &str, readiness: &Readiness) -> Answer {
    if path != "/healthz/ready" {
        return empty(StatusCode::NOT_FOUND);
    }
    if method != Method::GET {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let pending = readiness.pending();
    if pending.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    let names = pending.join(", ");
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, pending: {names}\n"))
}
