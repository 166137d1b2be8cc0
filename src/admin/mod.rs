//! What operators see and press: readiness, metrics, state dump, log level, drain.
//!
//! Three small HTTP/1.1 servers per process, on the service thread. They show what other rooms know, through
//! handles and callbacks given at start, and decide nothing. Whatever takes time to render is rendered on
//! another thread, one at a time, so that a readiness probe never waits for a dump.

mod console;
mod dump;
mod query;
mod ready;
mod server;
mod stats;
#[cfg(test)]
mod tests;

pub use console::{Console, console};
pub use dump::dump;
pub use ready::readiness;
pub use server::{BindError, bind};
pub use stats::stats;
