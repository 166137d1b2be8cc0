//! What discovery counts.

use crate::telemetry::{Counter, Registry};

use super::wire::{ADDRESS, AUTHORIZATION};

/// Counters of the stream to the control plane, with the reference's names where it has one.
#[derive(Clone, Debug)]
pub struct Metrics {
    messages: [Counter; 2],
    bytes: [Counter; 2],
    ended: [Counter; 4],
    pub(super) refused: Counter,
}

/// Why a stream ended, as its counter is labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It was not opened.
    ConnectionError,
    /// In a way that a server which goes away ends it.
    Reconnect,
    /// With another error.
    Error,
    /// In order.
    Complete,
}

impl Metrics {
    /// Counters in `registry`.
    pub fn new(registry: &Registry) -> Self {
        let by_type =
            |name, help| [ADDRESS, AUTHORIZATION].map(|url| registry.counter(name, help, &[("url", url)]));
        Self {
            messages: by_type("istio_xds_message_total", "Total number of messages received"),
            bytes: by_type("istio_xds_message_bytes_total", "Total number of bytes received"),
            ended: ["ConnectionError", "Reconnect", "Error", "Complete"].map(|reason| {
                let help = "The total number of completed connections to xds server (unstable)";
                registry.counter("istio_xds_connection_terminations_total", help, &[("reason", reason)])
            }),
            refused: registry.counter(
                "adit_xds_refused_total",
                "The total number of objects from discovery that were refused (unstable)",
                &[],
            ),
        }
    }

    pub(super) fn received(&self, url: &str, bytes: usize) {
        let Some(of) = [ADDRESS, AUTHORIZATION].iter().position(|known| *known == url) else { return };
        self.messages[of].increment();
        self.bytes[of].add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    pub(super) fn ended(&self, reason: Reason) {
        self.ended[reason as usize].increment();
    }
}
