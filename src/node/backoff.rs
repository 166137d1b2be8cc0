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

/// Counts failures to keep a session and answers with the wait before the next attempt.
#[derive(Debug)]
pub(super) struct Backoff {
    wait: Wait,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(wait: Wait) -> Self {
        Self { wait, failures: 0 }
    }

    /// Starts from the bottom again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and returns the wait, spread by 20 % either way so that the proxies of many nodes do
    /// not return in step.
    pub(super) fn fail(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.wait.after(self.failures).mul_f64(fastrand::f64().mul_add(0.4, 0.8))
    }
}
