//! How long to wait before the next attempt.

use std::time::Duration;

use super::Wait;

impl Wait {
    /// The wait after `failures` failures in a row: `first` after one, then doubling up to `longest`.
    pub(super) fn after(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// How a session, or the attempt to open one, went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    /// Its snapshot was complete.
    pub(super) synced: bool,
    /// It ended because the agent broke the protocol.
    pub(super) violated: bool,
    /// From connecting to its end.
    pub(super) lasted: Duration,
}

/// Counts sessions that came to nothing and answers with the wait before the next attempt.
#[derive(Debug)]
pub(super) struct Backoff {
    wait: Wait,
    settled: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(wait: Wait, settled: Duration) -> Self {
        Self { wait, settled, failures: 0 }
    }

    /// The wait after `session`, from the bottom again if it was a good one. It is spread by 20 % either
    /// way, so that the proxies of many nodes do not return in step.
    pub(super) fn after(&mut self, session: Session) -> Duration {
        // An agent that breaks the protocol after each snapshot must not be asked for one every 20 ms.
        if session.synced && (!session.violated || session.lasted >= self.settled) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.wait.after(self.failures).mul_f64(fastrand::f64().mul_add(0.4, 0.8))
    }
}
