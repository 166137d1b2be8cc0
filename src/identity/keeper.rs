//! The task that asks the authority, serves what it issues and renews it: the I/O around [`State`].

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::state::{Action, Event, Moment, State};
use super::store::{Answer, Message, PATIENCE, Published};
use super::{Authority, AuthorityError, CertificateError, Credentials, SpiffeId, TlsPolicy};

/// Requests to the authority at a time.
const MOST_IN_FLIGHT: usize = 8;
/// How long one request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long an identity is kept after its last pod, so that a rolling update of one pod per node finds it.
const KEPT_AFTER_RELEASE: Duration = Duration::from_secs(60);
/// Longest sleep: a wall clock that steps is noticed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// Messages taken in one turn.
const BATCH: usize = 256;

/// Keeps the certificates of a [`Store`](super::Store). One per process; [`Keeper::run`] lives on the service
/// thread.
pub struct Keeper {
    authority: Arc<dyn Authority>,
    ttl: Duration,
    policy: TlsPolicy,
    published: Arc<Published>,
    messages: mpsc::UnboundedReceiver<Message>,
    entries: HashMap<SpiffeId, Entry>,
    requests: JoinSet<Result<Credentials, AuthorityError>>,
    /// For whom each request is.
    asked: HashMap<task::Id, SpiffeId>,
    /// Whether readers see an outdated picture.
    changed: bool,
}

/// One identity and who is interested in it.
struct Entry {
    state: State,
    /// Claims that live.
    pods: usize,
    /// When it is forgotten if nobody claims it until then; set while there is no claim.
    forget_at: Option<Instant>,
    waiting: Vec<Waiting>,
    last_refusal: Option<Arc<AuthorityError>>,
}

struct Waiting {
    until: Instant,
    reply: oneshot::Sender<Answer>,
}

/// One identity as operators see it.
pub(super) struct Standing {
    pub(super) identity: SpiffeId,
    pub(super) credentials: Option<Arc<Credentials>>,
    pub(super) last_refusal: Option<Arc<AuthorityError>>,
}

impl Keeper {
    pub(super) fn new(
        authority: Arc<dyn Authority>,
        ttl: Duration,
        policy: TlsPolicy,
        published: Arc<Published>,
        messages: mpsc::UnboundedReceiver<Message>,
    ) -> Self {
        Self {
            authority,
            ttl,
            policy,
            published,
            messages,
            entries: HashMap::new(),
            requests: JoinSet::new(),
            asked: HashMap::new(),
            changed: false,
        }
    }

    /// Runs until every [`Store`](super::Store) and [`Wanted`](super::Wanted) is gone. Dropping the future ends
    /// all requests; what was published stays readable until it expires.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            self.turn();
            let wake = self.wakes_at();
            tokio::select! {
                taken = self.messages.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    for message in batch.drain(..) {
                        self.take(message);
                    }
                }
                Some(done) = self.requests.join_next_with_id() => self.answered(done),
                () = sleep_until(wake) => {}
            }
        }
    }

    fn now(&self) -> Moment {
        Moment { instant: Instant::now(), wall: self.policy.clock().now(), chance: fastrand::f64() }
    }

    /// Lets time pass for every identity, asks for what is due and publishes what changed.
    fn turn(&mut self) {
        let now = self.now();
        for entry in self.entries.values_mut() {
            self.changed |= entry.pass(&now);
        }
        for (identity, entry) in &mut self.entries {
            entry.end_waits(identity, &now);
        }
        let before = self.entries.len();
        self.entries.retain(|_, entry| !entry.is_forgotten(&now));
        self.changed |= self.entries.len() != before;
        self.ask(&now);
        if self.changed {
            self.publish();
        }
    }

    /// Asks for what is due, as far as there is room: first for whom a connection waits, then who has no
    /// certificate, then who is due the longest.
    fn ask(&mut self, now: &Moment) {
        let room = MOST_IN_FLIGHT - self.requests.len();
        if room == 0 {
            return;
        }
        let mut due: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(identity, entry)| {
                let due = entry.state.asks_at().filter(|due| *due <= now.instant)?;
                let awaited = !entry.waiting.is_empty();
                let lacking = entry.state.credentials().is_none();
                Some((Reverse(awaited), Reverse(lacking), due, identity.clone()))
            })
            .collect();
        due.sort_unstable();
        for (.., identity) in due.into_iter().take(room) {
            let issuing = self.authority.issue(identity.clone(), self.ttl);
            let (policy, wanted) = (self.policy.clone(), identity.clone());
            let request = self.requests.spawn(async move {
                let issued = timeout(REQUEST_DEADLINE, issuing)
                    .await
                    .map_err(|_| AuthorityError::TimedOut(REQUEST_DEADLINE))??;
                Ok(Credentials::new(&wanted, issued, &policy)?)
            });
            self.asked.insert(request.id(), identity.clone());
            self.happened(&identity, Event::Asked, now);
        }
    }

    /// Moves one identity's machine and does what it says.
    fn happened(&mut self, identity: &SpiffeId, event: Event, now: &Moment) {
        if let Some(entry) = self.entries.get_mut(identity) {
            self.changed |= entry.happened(event, now);
        }
    }

    fn take(&mut self, message: Message) {
        let now = self.now();
        match message {
            Message::Want(identity) => {
                let entry = self.entries.entry(identity).or_insert_with(|| Entry::new(&now));
                entry.pods += 1;
                entry.forget_at = None;
            }
            Message::Release(identity) => {
                if let Some(entry) = self.entries.get_mut(&identity) {
                    entry.pods = entry.pods.saturating_sub(1);
                    entry.unclaimed(&now);
                }
            }
            Message::Await { identity, reply } => {
                let entry = self.entries.entry(identity).or_insert_with(|| Entry::new(&now));
                entry.unclaimed(&now);
                self.changed |= entry.pass(&now);
                match entry.state.credentials() {
                    // Receivers that are gone gave up waiting.
                    Some(credentials) => drop(reply.send(Ok(credentials.clone()))),
                    None => {
                        entry.waiting.push(Waiting { until: now.instant + PATIENCE, reply });
                        self.changed |= entry.happened(Event::Awaited, &now);
                    }
                }
            }
            Message::Report(reply) => {
                let standings = self.entries.iter().map(|(identity, entry)| Standing {
                    identity: identity.clone(),
                    credentials: entry.state.credentials().cloned(),
                    last_refusal: entry.last_refusal.clone(),
                });
                drop(reply.send(standings.collect()));
            }
        }
    }

    /// A request ended.
    fn answered(&mut self, done: Result<(task::Id, Result<Credentials, AuthorityError>), JoinError>) {
        let (request, result) = match done {
            Ok((request, result)) => (request, result),
            // Only a panic in the authority ends a request like this; it counts as a refusal.
            Err(panicked) => (panicked.id(), Err(AuthorityError::Failed(Box::new(panicked)))),
        };
        let Some(identity) = self.asked.remove(&request) else { return };
        let now = self.now();
        let Some(entry) = self.entries.get_mut(&identity) else { return };
        match result {
            Ok(credentials) => {
                tracing::debug!(%identity, ?credentials, "certificate issued");
                entry.last_refusal = None;
                self.changed |= entry.happened(Event::Issued(Arc::new(credentials)), &now);
            }
            Err(refusal) => {
                entry.refused(&identity, refusal, &now);
            }
        }
    }

    fn publish(&mut self) {
        let serving = |(identity, entry): (&SpiffeId, &Entry)| {
            entry.state.credentials().map(|credentials| (identity.clone(), credentials.clone()))
        };
        self.published.store(Arc::new(self.entries.iter().filter_map(serving).collect()));
        self.changed = false;
    }

    /// When the next turn is due if nothing happens until then.
    fn wakes_at(&self) -> Instant {
        let now = self.now();
        // Without room for a request, the end of one is what to wait for.
        let has_room = self.requests.len() < MOST_IN_FLIGHT;
        self.entries
            .values()
            .filter_map(|entry| {
                let asks = entry.state.asks_at().filter(|_| has_room);
                let gives_up = entry.waiting.iter().map(|waiting| waiting.until).min();
                let forgotten = entry.forget_at.filter(|_| entry.is_idle());
                [asks, entry.state.elapses_at(&now), gives_up, forgotten].into_iter().flatten().min()
            })
            .min()
            .map_or(now.instant + LONGEST_SLEEP, |due| due.min(now.instant + LONGEST_SLEEP))
    }
}

impl Entry {
    fn new(now: &Moment) -> Self {
        Self {
            state: State::new(now),
            pods: 0,
            forget_at: Some(now.instant + KEPT_AFTER_RELEASE),
            waiting: Vec::new(),
            last_refusal: None,
        }
    }

    /// Moves the machine; says whether readers must be told.
    fn happened(&mut self, event: Event, now: &Moment) -> bool {
        let state = std::mem::replace(&mut self.state, State::new(now));
        let (state, action) = state.on(event, now);
        self.state = state;
        match action {
            Action::Nothing => false,
            Action::Serve(credentials) => {
                for waiting in self.waiting.drain(..) {
                    // Receivers that are gone gave up waiting.
                    let _ = waiting.reply.send(Ok(credentials.clone()));
                }
                true
            }
            Action::Withdraw => true,
        }
    }

    /// Lets time pass; says whether readers must be told.
    fn pass(&mut self, now: &Moment) -> bool {
        let mut changed = false;
        while let Some(event) = self.state.elapsed(now) {
            changed |= self.happened(event, now);
        }
        changed
    }

    fn refused(&mut self, identity: &SpiffeId, refusal: AuthorityError, now: &Moment) {
        self.happened(Event::Refused, now);
        let refusals = self.state.refusals();
        let (cause, serving) = (chain(&refusal), self.state.credentials().is_some());
        // Powers of two: an authority that is away for hours says so a dozen times, not thousands.
        if refusals.is_power_of_two() {
            tracing::warn!(%identity, refusals, serving, cause, "no certificate issued; asking again");
        } else {
            tracing::debug!(%identity, refusals, serving, cause, "no certificate issued; asking again");
        }
        self.last_refusal = Some(Arc::new(refusal));
        if !self.waiting.is_empty() {
            self.happened(Event::Awaited, now);
        }
    }

    /// Ends the waits that have lasted long enough and forgets those that were given up.
    fn end_waits(&mut self, identity: &SpiffeId, now: &Moment) {
        self.waiting.retain(|waiting| !waiting.reply.is_closed());
        let cause = &self.last_refusal;
        for waiting in self.waiting.extract_if(.., |waiting| waiting.until <= now.instant) {
            let identity = identity.clone();
            let error = match cause.clone() {
                Some(cause) => CertificateError::Refused { identity, cause },
                None => CertificateError::TimedOut { identity, waited: PATIENCE },
            };
            // A receiver that went away in this instant no longer wants to know.
            let _ = waiting.reply.send(Err(error));
        }
    }

    /// Starts the time after which it is forgotten, unless a pod claims it.
    fn unclaimed(&mut self, now: &Moment) {
        if self.pods == 0 {
            self.forget_at = Some(now.instant + KEPT_AFTER_RELEASE);
        }
    }

    /// Nothing under way and nobody waiting, so that forgetting loses nothing.
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.state.is_asking()
    }

    fn is_forgotten(&self, now: &Moment) -> bool {
        self.is_idle() && self.forget_at.is_some_and(|at| at <= now.instant)
    }
}

/// An error and all its causes on one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
