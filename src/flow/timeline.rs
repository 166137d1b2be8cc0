//! When each stage of a connection was reached, on the monotonic clock.

use std::time::{Duration, Instant};

/// What a connection goes through, in the order in which most do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its socket was accepted, or its CONNECT request was seen.
    Accepted,
    /// It is decided where it goes.
    Resolved,
    /// The certificate for it is at hand.
    Certificate,
    /// The pool gave a tunnel, or the right to make one.
    Pool,
    /// The TCP connection towards upstream stands.
    Tcp,
    /// Its TLS handshake is done.
    Tls,
    /// The CONNECT was answered with 200.
    Connect,
    /// The first byte of payload moved, in either direction.
    FirstByte,
    /// It is over.
    Closed,
}

/// The stages after [`Stage::Accepted`].
const LATER: usize = 8;
/// Stands for a stage that was not reached: no connection lives 584 years.
const NEVER: u64 = u64::MAX;

/// The nine stamps of one connection: one instant, and nanoseconds since then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    accepted: Instant,
    later: [u64; LATER],
}

impl Timeline {
    /// A connection that was accepted at `accepted`.
    pub fn new(accepted: Instant) -> Self {
        Self { accepted, later: [NEVER; LATER] }
    }

    /// When it was accepted.
    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// `stage` is reached at `now`. The first stamp counts: a retried stage keeps when it was first reached.
    pub fn stamp(&mut self, stage: Stage, now: Instant) {
        let Some(at) = (stage as usize).checked_sub(1) else { return };
        if self.later[at] == NEVER {
            let nanos = now.saturating_duration_since(self.accepted).as_nanos();
            self.later[at] = u64::try_from(nanos).unwrap_or(NEVER);
        }
    }

    /// How long after [`Stage::Accepted`] `stage` was reached; None if it was not.
    pub fn at(&self, stage: Stage) -> Option<Duration> {
        match (stage as usize).checked_sub(1) {
            None => Some(Duration::ZERO),
            Some(at) => Some(self.later[at]).filter(|nanos| *nanos != NEVER).map(Duration::from_nanos),
        }
    }
}
