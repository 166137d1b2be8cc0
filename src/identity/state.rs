//! One identity's certificate over time: a machine without I/O. Time and chance come in as values.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Credentials;

/// Least time between two requests for one identity, whoever waits.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// Least time between a certificate's arrival and the request for the next, so that an authority that hands out
/// certificates of a second, or of yesterday, is not called in a tight loop.
const LEAST_RENEWAL: Duration = Duration::from_secs(5);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(150);

/// What the machine may know of its surroundings at one turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Monotonic; stands still while the machine is suspended.
    pub(super) instant: Instant,
    /// The wall clock; may jump.
    pub(super) wall: SystemTime,
    /// A random number from 0 to 1; 0.5 means no jitter.
    pub(super) chance: f64,
}

impl Moment {
    /// `span`, stretched or shrunk by at most `share` of it.
    fn jittered(&self, span: Duration, share: f64) -> Duration {
        span.mul_f64(1.0 + share * (2.0 * self.chance - 1.0))
    }
}

/// One identity's certificate.
///
/// | from   | event   | to     | and                                                       |
/// |--------|---------|--------|-----------------------------------------------------------|
/// | Wanted | asked   | Wanted | one request is under way                                  |
/// | Wanted | awaited | Wanted | ask now, a second after the last request at the earliest  |
/// | Wanted | issued  | Fresh  | serve it; renew at half of its lifetime                   |
/// | Wanted | refused | Wanted | ask again, waiting longer                                 |
/// | Fresh  | due     | Ageing | ask; keep serving it                                      |
/// | Fresh  | expired | Wanted | serve it no more; ask                                     |
/// | Ageing | asked   | Ageing | one request is under way                                  |
/// | Ageing | issued  | Fresh  | serve the new one; renew at half of its lifetime          |
/// | Ageing | refused | Ageing | ask again, waiting longer; keep serving it                |
/// | Ageing | expired | Wanted | serve it no more; ask                                     |
///
/// Any other pair changes nothing.
#[derive(Debug)]
pub(super) enum State {
    Wanted { refusals: u32, ask: Ask },
    Fresh { credentials: Arc<Credentials>, renewal: Renewal },
    Ageing { credentials: Arc<Credentials>, refusals: u32, ask: Ask },
}

/// When the authority is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// At `due`; a waiting connection may advance that to `earliest`.
    At { due: Instant, earliest: Instant },
    /// It was asked at `since` and has not answered.
    UnderWay { since: Instant },
}

/// When a certificate is due for renewal: once the wall clock is outside of `from..until`, or at `at` at the
/// latest. The wall clock sees suspensions and forward steps, the monotonic one backward steps, and a wall clock
/// before `from` is a step back to a time at which peers do not accept the certificate yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Renewal {
    from: SystemTime,
    until: SystemTime,
    at: Instant,
    arrived: Instant,
}

/// What can happen to one identity's certificate.
#[derive(Debug)]
pub(super) enum Event {
    /// The request was sent.
    Asked,
    /// A connection waits for it.
    Awaited,
    /// The authority delivered.
    Issued(Arc<Credentials>),
    /// The authority did not.
    Refused,
    /// Time to renew.
    Due,
    /// Its validity ended.
    Expired,
}

/// What the task around the machine does next.
#[derive(Debug)]
pub(super) enum Action {
    /// Nothing changed for the readers.
    Nothing,
    /// Publish this certificate, and answer who waits with it.
    Serve(Arc<Credentials>),
    /// Publish that there is none.
    Withdraw,
}

impl State {
    /// An identity of which nothing is known yet; it is asked for at once.
    pub(super) fn new(now: &Moment) -> Self {
        Self::Wanted { refusals: 0, ask: Ask::At { due: now.instant, earliest: now.instant } }
    }

    /// Takes the old state whole, so none can be used after its turn.
    pub(super) fn on(self, event: Event, now: &Moment) -> (Self, Action) {
        match (self, event) {
            (Self::Wanted { refusals, .. }, Event::Asked) => {
                (Self::Wanted { refusals, ask: Ask::UnderWay { since: now.instant } }, Action::Nothing)
            }
            (Self::Ageing { credentials, refusals, .. }, Event::Asked) => {
                let ask = Ask::UnderWay { since: now.instant };
                (Self::Ageing { credentials, refusals, ask }, Action::Nothing)
            }
            (Self::Wanted { refusals, ask }, Event::Awaited) => {
                (Self::Wanted { refusals, ask: ask.advanced(now) }, Action::Nothing)
            }
            (Self::Wanted { .. } | Self::Ageing { .. }, Event::Issued(credentials)) => {
                let renewal = Renewal::of(&credentials, now);
                (Self::Fresh { credentials: credentials.clone(), renewal }, Action::Serve(credentials))
            }
            (Self::Wanted { refusals, ask }, Event::Refused) => {
                let refusals = refusals.saturating_add(1);
                (Self::Wanted { refusals, ask: ask.put_off(refusals, now) }, Action::Nothing)
            }
            (Self::Ageing { credentials, refusals, ask }, Event::Refused) => {
                let refusals = refusals.saturating_add(1);
                let ask = ask.put_off(refusals, now);
                (Self::Ageing { credentials, refusals, ask }, Action::Nothing)
            }
            (Self::Fresh { credentials, .. }, Event::Due) => {
                let ask = Ask::At { due: now.instant, earliest: now.instant };
                (Self::Ageing { credentials, refusals: 0, ask }, Action::Nothing)
            }
            (Self::Fresh { renewal, .. }, Event::Expired) => {
                let due = (renewal.arrived + LEAST_RENEWAL).max(now.instant);
                let ask = Ask::At { due, earliest: renewal.arrived + LEAST_PAUSE };
                (Self::Wanted { refusals: 0, ask }, Action::Withdraw)
            }
            (Self::Ageing { refusals, ask, .. }, Event::Expired) => {
                (Self::Wanted { refusals, ask: ask.advanced(now) }, Action::Withdraw)
            }
            (state, _) => (state, Action::Nothing),
        }
    }

    /// What the passing of time alone has brought about.
    pub(super) fn elapsed(&self, now: &Moment) -> Option<Event> {
        match self {
            Self::Fresh { credentials, .. } | Self::Ageing { credentials, .. }
                if credentials.expired(now.wall) =>
            {
                Some(Event::Expired)
            }
            Self::Fresh { renewal, .. } if renewal.due(now) => Some(Event::Due),
            _ => None,
        }
    }

    /// When the authority is to be asked; `None` when it need not be or is being asked.
    pub(super) fn asks_at(&self) -> Option<Instant> {
        match self {
            Self::Wanted { ask: Ask::At { due, .. }, .. } | Self::Ageing { ask: Ask::At { due, .. }, .. } => {
                Some(*due)
            }
            _ => None,
        }
    }

    /// When [`State::elapsed`] will have something to say, if no clock steps until then.
    pub(super) fn elapses_at(&self, now: &Moment) -> Option<Instant> {
        let until = |wall: SystemTime| now.instant + wall.duration_since(now.wall).unwrap_or(Duration::ZERO);
        match self {
            Self::Wanted { .. } => None,
            Self::Fresh { credentials, renewal } => {
                let by_wall = until(renewal.until).max(renewal.arrived + LEAST_RENEWAL);
                Some(renewal.at.min(by_wall).min(until(credentials.not_after())))
            }
            Self::Ageing { credentials, .. } => Some(until(credentials.not_after())),
        }
    }

    /// The certificate that is served.
    pub(super) fn credentials(&self) -> Option<&Arc<Credentials>> {
        match self {
            Self::Wanted { .. } => None,
            Self::Fresh { credentials, .. } | Self::Ageing { credentials, .. } => Some(credentials),
        }
    }

    /// How often in a row the authority has refused.
    pub(super) fn refusals(&self) -> u32 {
        match self {
            Self::Wanted { refusals, .. } | Self::Ageing { refusals, .. } => *refusals,
            Self::Fresh { .. } => 0,
        }
    }

    /// Whether a request is under way.
    pub(super) fn is_asking(&self) -> bool {
        matches!(
            self,
            Self::Wanted { ask: Ask::UnderWay { .. }, .. } | Self::Ageing { ask: Ask::UnderWay { .. }, .. }
        )
    }
}

impl Ask {
    /// As early as allowed.
    fn advanced(self, now: &Moment) -> Self {
        match self {
            Self::At { due, earliest } => Self::At { due: due.min(earliest.max(now.instant)), earliest },
            Self::UnderWay { .. } => self,
        }
    }

    /// After the `refusals`-th refusal in a row: 1 s, doubling to 150 s, ±20 %.
    fn put_off(self, refusals: u32, now: &Moment) -> Self {
        let asked = match self {
            Self::UnderWay { since } => since,
            Self::At { earliest, .. } => earliest,
        };
        let doubled = 2_u32.checked_pow(refusals.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = FIRST_BACKOFF.saturating_mul(doubled).min(LONGEST_BACKOFF);
        let earliest = asked + LEAST_PAUSE;
        Self::At { due: (now.instant + now.jittered(pause, 0.2)).max(earliest), earliest }
    }
}

impl Renewal {
    /// Half of what is left of a certificate that arrives now, ±10 %; what an authority backdates does not count,
    /// and neither does what a late clock of ours adds.
    fn of(credentials: &Credentials, now: &Moment) -> Self {
        let span = |from, to: SystemTime| to.duration_since(from).unwrap_or(Duration::ZERO);
        let left = span(now.wall, credentials.not_after())
            .min(span(credentials.not_before(), credentials.not_after()));
        let pause = now.jittered(left / 2, 0.1).max(LEAST_RENEWAL);
        Self {
            from: credentials.not_before().min(now.wall),
            // Beyond what the clock can show, the monotonic time below still ends it.
            until: now.wall.checked_add(pause).unwrap_or(credentials.not_after()),
            at: now.instant + pause,
            arrived: now.instant,
        }
    }

    fn due(&self, now: &Moment) -> bool {
        // A wall clock that steps right after the arrival must not make a loop either.
        let settled = now.instant >= self.arrived + LEAST_RENEWAL;
        now.instant >= self.at || (settled && !(self.from..self.until).contains(&now.wall))
    }
}
