//! The numbers and the lines: metric shards that workers own and scrapes sum, the log queue, label spelling.
//!
//! One [`Registry`] and one set of [`Logs`] per process, one [`Shard`] per data worker. A worker counts with
//! plain stores into cells that only it writes and logs by a queue that never makes it wait; everything that
//! costs (summing, spelling, writing) happens on the thread that asks for it. This room knows no connection:
//! what is counted and logged about one is decided in `flow`, what is served to whom in `admin`.

mod families;
mod labels;
mod logging;
mod metrics;
mod page;
mod readiness;
mod shard;
#[cfg(test)]
pub(crate) mod tests;

pub use families::{Proxies, certificate_requests, log_lines_dropped, source_address_replaced};
pub use labels::{
    Fault, Refusal, Reporter, ResponseFlag, Security, ServiceLabels, Shared, Text, TrafficLabels,
    WorkloadLabels,
};
pub use logging::{BadDirective, Format, Levels, Logs, StartError, install, subscriber};
pub use metrics::{Counter, Gauge, Held, Registry};
pub use readiness::{Readiness, Task};
pub use shard::{OpenSocket, Series, Shard};
