//! Log lines: filtered by level, written as one line of text or JSON each, handed to a writer thread.
//!
//! A thread that logs formats its line and puts it into a bounded queue; it takes no lock and never waits for
//! whoever reads the output. Lines that do not fit are dropped and counted.

mod format;
mod levels;
mod queue;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt;

pub use format::Format;
pub use levels::{BadDirective, Levels};

use super::metrics::Counter;

/// How long the end of the process waits for the reader of its last lines.
const FLUSH_AT_EXIT: Duration = Duration::from_secs(1);

/// The process's log. Dropping it waits up to a second until what was logged so far is written.
#[derive(Debug)]
pub struct Logs {
    levels: Levels,
    queue: Arc<queue::Queue>,
}

impl Logs {
    /// The handle that changes what is logged.
    pub fn levels(&self) -> Levels {
        self.levels.clone()
    }

    /// Waits until every line logged before this call is written, at most for `limit`. False if it was not in
    /// time.
    pub fn flush(&self, limit: Duration) -> bool {
        self.queue.flush(limit)
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.queue.flush(FLUSH_AT_EXIT);
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The filter is not understood.
    #[error("RUST_LOG is not understood")]
    Filter(#[from] BadDirective),
    /// No descriptor or no thread for the output.
    #[error("standard output cannot be used for logs")]
    Output(#[from] io::Error),
    /// Logging was started twice.
    #[error("another log is already installed in this process")]
    Installed,
}

/// Sends the log of this process to standard output.
///
/// `filter` has the form of `RUST_LOG`, see [`Levels`]. Lines that are lost are counted in `dropped`.
///
/// # Errors
/// [`StartError`]; nothing is installed then.
pub fn install(format: Format, filter: &str, dropped: Counter) -> Result<Logs, StartError> {
    // The descriptor itself: the standard library's handle has a lock that a stalled write would hold, and
    // anything that prints at exit would then wait for ever.
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let (subscriber, logs) = subscriber(format, filter, stdout, dropped)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| StartError::Installed)?;
    Ok(logs)
}

/// A log that writes to `output`, from a thread of its own; as [`install`], but not installed.
///
/// # Errors
/// [`StartError::Filter`] and [`StartError::Output`].
pub fn subscriber(
    format: Format,
    filter: &str,
    output: impl Write + Send + 'static,
    dropped: Counter,
) -> Result<(impl Subscriber + Send + Sync, Logs), StartError> {
    let levels = Levels::parse(filter)?;
    let queue = Arc::new(queue::Queue::start(output, dropped)?);
    let layer = format::Lines::new(format, levels.clone(), Arc::clone(&queue));
    Ok((tracing_subscriber::registry().with(layer), Logs { levels, queue }))
}
