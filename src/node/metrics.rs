//! Numbers of this room, for whoever owns the registry to read at scrape.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start of the process, and two gauges. Written by the service thread alone.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Gauge: pods whose listeners are up.
    pub active: AtomicU64,
    /// Gauge: pods that could not start and are tried again.
    pub pending: AtomicU64,
    /// Pods whose listeners came up.
    pub started: AtomicU64,
    /// Pods that ran and were ended.
    pub stopped: AtomicU64,
    /// Attempts to start a pod that failed, repetitions included.
    pub failed_starts: AtomicU64,
    /// Sessions opened with the agent.
    pub sessions: AtomicU64,
    /// Sessions dropped because the agent broke the protocol.
    pub protocol_errors: AtomicU64,
    /// Requests answered with an error.
    pub nacks: AtomicU64,
}

impl Metrics {
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn show(gauge: &AtomicU64, value: usize) {
        // A count of things in memory fits 64 bits on every platform Rust has.
        gauge.store(u64::try_from(value).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
