//! The names of what other rooms count: each spelled here once, with its help.
//!
//! A HELP text with the word `(unstable)` marks what is ours, or what Istio itself does not promise.

use super::metrics::{Counter, Gauge, Registry};

/// The in-pod proxies of this node, as the `node` room runs them.
#[derive(Clone, Debug)]
pub struct Proxies {
    /// Pods that are served.
    pub active: Gauge,
    /// Pods whose proxy could not be started yet.
    pub pending: Gauge,
    /// Proxies started since this process began.
    pub started: Counter,
    /// Proxies stopped since this process began.
    pub stopped: Counter,
}

impl Proxies {
    /// The node's four numbers. Their prefix is not `istio_`, which is what the shipped dashboard asks for.
    pub fn new(registry: &Registry) -> Self {
        let gauge = |name, help| registry.gauge(name, help, &[]);
        let counter = |name, help| registry.counter(name, help, &[]);
        Self {
            active: gauge(
                "workload_manager_active_proxy_count",
                "The number of pods whose traffic is served (unstable)",
            ),
            pending: gauge(
                "workload_manager_pending_proxy_count",
                "The number of pods whose proxy could not be started yet (unstable)",
            ),
            started: counter(
                "workload_manager_proxies_started_total",
                "The total number of pods whose proxy was started (unstable)",
            ),
            stopped: counter(
                "workload_manager_proxies_stopped_total",
                "The total number of pods whose proxy was stopped (unstable)",
            ),
        }
    }
}

/// Log lines that could not be written: the queue was full, or the output failed.
pub fn log_lines_dropped(registry: &Registry) -> Counter {
    registry.counter(
        "adit_log_lines_dropped_total",
        "The total number of log lines that were not written, because their reader is slow or gone (unstable)",
        &[],
    )
}

/// Connections delivered from this node's address because the client's could not be used.
pub fn source_address_replaced(registry: &Registry) -> Counter {
    registry.counter(
        "adit_source_address_replaced_total",
        "The total number of connections delivered with another source address than the client's (unstable)",
        &[],
    )
}

/// Certificate requests to the CA, by `result` (a closed list of the `identity` room, such as `issued`).
pub fn certificate_requests(registry: &Registry, result: &'static str) -> Counter {
    registry.counter(
        "adit_certificates_requests_total",
        "The total number of certificates asked of the CA, by its answer (unstable)",
        &[("result", result)],
    )
}
