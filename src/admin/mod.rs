//! What operators see and press: readiness, metrics.
