//! The task around the state machine: connects, reads, starts and ends pods, answers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::backoff::{Backoff, Session};
use super::error::{Ended, Refusal, StartError, Violation, chain};
use super::socket::{Connection, Received};
use super::state::{Action, Cut, Event, State};
use super::wire::{self, Request};
use super::{Config, Metrics, PodInfo, Pods, Stop, Timing};
use crate::net::Netns;

/// Serves the pods of this node until `stop` completes; then drops the session and drains every pod, and
/// returns when the last is done. How long a drain may take is for `pods` to bound.
///
/// `ready` is told `false` at first and then every change: `true` while a session is open, its snapshot is
/// complete and no pod waits for another attempt. Runs on the calling thread's runtime, which needs I/O and
/// time. No error ends it: whatever the agent does, the session is dropped, a line says why, and a new
/// session is tried; pods run on meanwhile.
///
/// Cancel: pods are left as they are; let `stop` complete instead.
pub async fn run<P: Pods>(
    config: Config,
    pods: &P,
    metrics: &Metrics,
    ready: impl Fn(bool),
    stop: impl Future<Output = ()>,
) {
    let state = State::new(config.home, config.timing.retry);
    let mut node = Node { config, pods, metrics, ready, told: None, state, attempts: HashMap::new() };
    node.publish();
    node.serve(pin!(stop)).await;
    node.drain().await;
}

/// A start under way. Dropping it drops the start.
type Attempt<'a> = Pin<Box<dyn Future<Output = Result<(), StartError>> + 'a>>;

struct Node<'a, P, R> {
    config: Config,
    pods: &'a P,
    metrics: &'a Metrics,
    ready: R,
    /// What `ready` was told last.
    told: Option<bool>,
    state: State,
    /// Repeated starts of pods that waited, by uid.
    attempts: HashMap<Arc<str>, Attempt<'a>>,
}

impl<'a, P: Pods, R: Fn(bool)> Node<'a, P, R> {
    /// One session after another, until `stop`.
    async fn serve(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>) {
        let mut backoff = Backoff::new(self.config.timing.reconnect, self.config.timing.settled);
        loop {
            let since = Instant::now();
            let ended = match Connection::open(&self.config.socket) {
                Ok(connection) => {
                    Metrics::count(&self.metrics.sessions);
                    match self.session(&connection, stop.as_mut()).await {
                        Err(ended) => ended,
                    }
                }
                Err(cause) => Ended::Unreachable(cause),
            };
            let synced = self.state.synced();
            self.on(Event::Closed);
            match &ended {
                Ended::Stopping => return,
                Ended::Closed => info!("the node agent closed the session; pods run on"),
                Ended::Violated(_) => {
                    Metrics::count(&self.metrics.protocol_errors);
                    warn!(
                        error = chain(&ended),
                        "the session with the node agent is dropped and opened anew"
                    );
                }
                Ended::Unreachable(_) | Ended::Broken(_) | Ended::Late(_) => warn!(
                    socket = %self.config.socket.display(),
                    error = chain(&ended),
                    "no session with the node agent; trying again"
                ),
            }
            let session =
                Session { synced, violated: matches!(ended, Ended::Violated(_)), lasted: since.elapsed() };
            if self.unless(stop.as_mut(), sleep(backoff.after(session))).await.is_none() {
                return;
            }
        }
    }

    /// One session, from hello to its end.
    async fn session(
        &mut self,
        connection: &Connection,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Infallible, Ended> {
        let deadline = self.config.timing.answer;
        let hello = wire::hello();
        let hello = in_time(deadline, connection.send(&hello));
        self.unless(stop.as_mut(), hello).await.ok_or(Ended::Stopping)?.map_err(Ended::Broken)?;
        debug!("a session with the node agent is open");
        self.on(Event::Opened);
        loop {
            let received = self.unless(stop.as_mut(), connection.receive()).await.ok_or(Ended::Stopping)?;
            let answer_by = Instant::now() + deadline;
            let outcome = match received.map_err(Ended::Broken)? {
                Received::End => return Err(Ended::Closed),
                Received::Damaged(violation) => Err(violation),
                Received::Packet(packet) => match Request::read(packet) {
                    Ok(request) => self.request(request).await,
                    Err(violation) => Err(violation),
                },
            };
            let error = match &outcome {
                Ok(Ok(())) => String::new(),
                Ok(Err(refusal)) => {
                    let error = chain(refusal);
                    warn!(error, "a request of the node agent is refused");
                    error
                }
                Err(violation) => chain(violation),
            };
            if !error.is_empty() {
                Metrics::count(&self.metrics.nacks);
            }
            let left = answer_by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Ended::Late(deadline));
            }
            let sent = in_time(left, connection.send(&wire::answer(error))).await;
            // What the agent did wrong matters more than whether it heard so.
            outcome.map(drop).map_err(Ended::Violated)?;
            sent.map_err(Ended::Broken)?;
        }
    }

    /// Does what the agent asks, and says what to answer.
    async fn request(&mut self, request: Request) -> Result<Result<(), Refusal>, Violation> {
        let event = match request {
            Request::Add(pod, descriptor) => Event::Add(pod, Netns::from_fd(descriptor).map(Arc::new)),
            Request::Keep(uid) => Event::Keep(uid),
            Request::Del(uid) => Event::Del(uid),
            Request::SnapshotSent => Event::SnapshotSent,
            Request::Unknown => Event::Unknown,
        };
        match self.on(event) {
            Action::Nothing | Action::Ack => Ok(Ok(())),
            Action::Refuse(refusal) => Ok(Err(refusal)),
            Action::End(violation) => Err(violation),
            Action::Start(pod, netns, replaced) => {
                if let Some(cut) = &replaced {
                    self.forget(cut);
                }
                let uid = Arc::clone(&pod.uid);
                let start = attempt(self.pods, self.config.timing, pod, netns, replaced.is_some());
                let result = self.meanwhile(start).await;
                self.attempted(&uid, &result);
                Ok(result.map_err(Refusal::Start))
            }
            Action::Cut(cuts) => {
                for cut in &cuts {
                    self.forget(cut);
                }
                let (pods, timing) = (self.pods, self.config.timing);
                self.meanwhile(all(cuts.iter().map(|gone| cut(pods, timing, &gone.uid)))).await;
                Ok(Ok(()))
            }
        }
    }

    /// Waits for `outside` unless `stop` comes first, while waiting pods are tried again.
    async fn unless<T>(
        &mut self,
        stop: Pin<&mut impl Future<Output = ()>>,
        outside: impl Future<Output = T>,
    ) -> Option<T> {
        let first = async {
            tokio::select! {
                biased;
                () = stop => None,
                done = outside => Some(done),
            }
        };
        self.meanwhile(first).await
    }

    /// Waits for `outside` while waiting pods are tried again.
    async fn meanwhile<T>(&mut self, outside: impl Future<Output = T>) -> T {
        let mut outside = pin!(outside);
        loop {
            let due = self.state.next_retry();
            let retry = async {
                match due {
                    Some((at, uid)) => {
                        sleep_until(at).await;
                        uid
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                done = &mut outside => return done,
                (uid, result) = finished(&mut self.attempts) => self.attempted(&uid, &result),
                uid = retry => self.retry(uid),
            }
        }
    }

    /// Begins another attempt to start a waiting pod.
    fn retry(&mut self, uid: Arc<str>) {
        if let Action::Start(pod, netns, replaced) = self.on(Event::Due(Arc::clone(&uid))) {
            let start = attempt(self.pods, self.config.timing, pod, netns, replaced.is_some());
            self.attempts.insert(uid, Box::pin(start));
        }
    }

    /// Takes the result of a start.
    fn attempted(&mut self, uid: &Arc<str>, result: &Result<(), StartError>) {
        match result {
            Ok(()) => {
                Metrics::count(&self.metrics.started);
                info!(pod = &**uid, "the pod is served");
                self.on(Event::Started(Arc::clone(uid)));
            }
            Err(error) => {
                Metrics::count(&self.metrics.failed_starts);
                warn!(pod = &**uid, error = chain(error), "the pod cannot be served yet; trying again");
                self.on(Event::Failed(Arc::clone(uid)));
            }
        }
    }

    /// Drops what is under way for a pod that is about to be cut.
    fn forget(&mut self, cut: &Cut) {
        self.attempts.remove(&cut.uid);
        if cut.ran {
            Metrics::count(&self.metrics.stopped);
        }
        info!(pod = &*cut.uid, "the pod is served no more");
    }

    /// Drains what runs and cuts what is starting, all at once.
    async fn drain(&mut self) {
        let ends = self.state.end_all();
        for end in &ends {
            self.forget(end);
        }
        self.publish();
        let how = |end: &Cut| if end.ran { Stop::Drain } else { Stop::Cut };
        all(ends.iter().map(|end| self.pods.stop(&end.uid, how(end)))).await;
    }

    fn on(&mut self, event: Event) -> Action {
        let action = self.state.on(event, Instant::now());
        self.publish();
        action
    }

    /// Shows the gauges, and tells readiness if it changed.
    fn publish(&mut self) {
        Metrics::show(&self.metrics.active, self.state.active());
        Metrics::show(&self.metrics.pending, self.state.pending());
        let ready = self.state.ready();
        if self.told.replace(ready) != Some(ready) {
            (self.ready)(ready);
        }
    }
}

/// Starts one pod within its deadline. What a failed start made is cut before this returns.
async fn attempt<P: Pods>(
    pods: &P,
    timing: Timing,
    pod: PodInfo,
    netns: Arc<Netns>,
    replaces: bool,
) -> Result<(), StartError> {
    let uid = Arc::clone(&pod.uid);
    let start = async {
        if replaces {
            cut(pods, timing, &uid).await;
        }
        pods.start(pod, netns).await
    };
    let result = timeout(timing.start, start).await.unwrap_or(Err(StartError::Late(timing.start)));
    if result.is_err() {
        cut(pods, timing, &uid).await;
    }
    result
}

/// Cuts one pod, and goes on when that takes too long: the agent waits for an answer.
async fn cut<P: Pods>(pods: &P, timing: Timing, uid: &str) {
    if timeout(timing.stop, pods.stop(uid, Stop::Cut)).await.is_err() {
        warn!(pod = uid, within = ?timing.stop, "the pod's listeners did not close in time; going on");
    }
}

/// `send`, or `TimedOut` after `limit`.
async fn in_time(limit: std::time::Duration, send: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(limit, send).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Waits for all of `futures`.
async fn all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut open: Vec<_> = futures.map(Box::pin).collect();
    poll_fn(|cx| {
        open.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if open.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits for the first of `attempts` that is done, and removes it; for ever when there are none.
///
/// Cancel: attempts go on.
async fn finished(attempts: &mut HashMap<Arc<str>, Attempt<'_>>) -> (Arc<str>, Result<(), StartError>) {
    poll_fn(|cx| {
        let done = attempts.iter_mut().find_map(|(uid, attempt)| match attempt.as_mut().poll(cx) {
            Poll::Ready(result) => Some((Arc::clone(uid), result)),
            Poll::Pending => None,
        });
        let Some((uid, result)) = done else { return Poll::Pending };
        attempts.remove(&uid);
        Poll::Ready((uid, result))
    })
    .await
}
