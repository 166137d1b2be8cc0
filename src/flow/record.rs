//! One connection's record: opened once, closed once; its counters, its one log line, its timeline.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use tracing::Level;

use super::relay::Meter;
use super::{Baggage, Outcome, Stage, Timeline};
use crate::identity::SpiffeId;
use crate::net::ClientAddr;
use crate::telemetry::{
    Refusal, Reporter, ResponseFlag, Security, Series, ServiceLabels, Shard, Shared, Text, TrafficLabels,
    WorkloadLabels,
};

/// The scope of these lines: operators and Istio's tests search for it.
const ACCESS: &str = "access";

/// What is known of the workload at one end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What log lines call it: the pod's name.
    pub name: Option<Text>,
    /// What labels say of it.
    pub labels: Shared<WorkloadLabels>,
    /// Who it is.
    ///
    /// Proven by TLS at the far end of a tunnel. For a destination reached in plaintext it is what the mesh
    /// says of that address: labels show it (Istio's dashboards expect it), log lines do not.
    pub identity: Option<SpiffeId>,
}

impl Peer {
    /// Nothing is known.
    pub fn unknown() -> Self {
        Self { name: None, labels: WorkloadLabels::default().share(), identity: None }
    }

    /// A client that the mesh does not know and its proxy described. Log lines name it by its canonical
    /// service.
    pub fn source_from_baggage(baggage: &Baggage, identity: Option<SpiffeId>) -> Self {
        Self { name: baggage.service.clone(), labels: baggage.labels().share(), identity }
    }

    /// A server behind a gateway, as it described itself in its answer. Log lines name it by its workload.
    pub fn destination_from_baggage(baggage: &Baggage, identity: Option<SpiffeId>) -> Self {
        Self { name: baggage.workload.clone(), labels: baggage.labels().share(), identity }
    }

    fn principal(&self) -> Option<Text> {
        self.identity.as_ref().map(|identity| identity.as_str().into())
    }
}

/// Who talks to whom, as known when the record opens. Behind a gateway the destination is known only from its
/// answer: put it in before.
#[derive(Clone, Debug)]
pub struct Parties {
    /// At which side this proxy is.
    pub reporter: Reporter,
    /// Where the connection came from.
    pub client: ClientAddr,
    /// The workload that dialled.
    pub source: Peer,
    /// The workload that is dialled: a waypoint, if there is one.
    pub destination: Peer,
    /// The actual TCP destination, or on the tunnel port this pod's own address and port 15008.
    pub dst_addr: SocketAddr,
    /// The CONNECT authority; None without a tunnel.
    pub hbone_addr: Option<Text>,
    /// The service that was addressed.
    pub service: Option<Shared<ServiceLabels>>,
    /// How the two proxies are connected.
    pub security: Security,
}

impl Parties {
    /// A plaintext caller has shown no identity, whatever the mesh says of its address.
    fn labels(&self) -> TrafficLabels {
        TrafficLabels {
            reporter: self.reporter,
            source: self.source.labels.clone(),
            source_principal: self.source.principal().filter(|_| self.security == Security::MutualTls),
            destination: self.destination.labels.clone(),
            destination_principal: self.destination.principal(),
            service: self.service.clone(),
            response_flag: ResponseFlag::None,
            security: self.security,
        }
    }

    fn shown<'a>(&self, peer: &'a Peer) -> Option<&'a str> {
        peer.identity.as_ref().filter(|_| self.security == Security::MutualTls).map(SpiffeId::as_str)
    }
}

/// One connection, from opened to closed.
///
/// Counts as opened when it is made, and as closed exactly once: by [`Record::close`], or as
/// [`Outcome::Drained`] when it is dropped before that (a task that was cut ends so). It belongs to the
/// worker whose shard it counts in.
#[derive(Debug)]
pub struct Record {
    shard: Shard,
    tally: Rc<Tally>,
    parties: Parties,
    timeline: Cell<Timeline>,
    policy: RefCell<Option<Text>>,
    open: bool,
}

/// The bytes of one connection, counted as they are delivered. Its record and whoever carries it share one.
#[derive(Debug)]
pub struct Tally {
    series: Series,
    received: Cell<u64>,
    sent: Cell<u64>,
    /// When the first byte was delivered.
    first: Cell<Option<Instant>>,
}

impl Tally {
    /// `bytes` were written from downstream to upstream (`received` in Istio's metrics). Visible at once.
    pub fn received(&self, bytes: u64) {
        self.first_byte(bytes);
        self.received.set(self.received.get().saturating_add(bytes));
        self.series.received(bytes);
    }

    /// `bytes` were written from upstream to downstream (`sent` in Istio's metrics). Visible at once.
    pub fn sent(&self, bytes: u64) {
        self.first_byte(bytes);
        self.sent.set(self.sent.get().saturating_add(bytes));
        self.series.sent(bytes);
    }

    fn first_byte(&self, bytes: u64) {
        if bytes > 0 && self.first.get().is_none() {
            self.first.set(Some(Instant::now()));
        }
    }
}

/// The fields that all lines of a record share, in their order, and then `extra`. A macro, because a level
/// and a set of fields belong to one place in the code.
macro_rules! line {
    ($level:expr, $parties:expr, { $($extra:tt)* }, $message:literal) => {
        tracing::event!(
            target: ACCESS,
            parent: None,
            $level,
            src.addr = %$parties.client,
            src.workload = $parties.source.name.as_deref(),
            src.namespace = $parties.source.labels.namespace.as_deref(),
            src.identity = $parties.shown(&$parties.source),
            src.cluster = $parties.source.labels.cluster.as_deref(),
            dst.addr = %$parties.dst_addr,
            dst.hbone_addr = $parties.hbone_addr.as_deref().map(tracing::field::display),
            dst.service = $parties.service.as_ref().and_then(|service| service.hostname.as_deref()),
            dst.workload = $parties.destination.name.as_deref(),
            dst.namespace = $parties.destination.labels.namespace.as_deref(),
            dst.identity = $parties.shown(&$parties.destination),
            dst.cluster = $parties.destination.labels.cluster.as_deref(),
            direction = $parties.reporter.direction(),
            $($extra)*
            $message
        )
    };
}

impl Record {
    /// Opens the record of a connection: counts it, and logs `connection opened` at debug.
    pub fn open(shard: &Shard, timeline: Timeline, parties: Parties) -> Self {
        let series = shard.series(&parties.labels());
        series.opened();
        line!(Level::DEBUG, parties, {}, "connection opened");
        Self {
            shard: shard.clone(),
            tally: Rc::new(Tally {
                series,
                received: Cell::new(0),
                sent: Cell::new(0),
                first: Cell::new(None),
            }),
            parties,
            timeline: Cell::new(timeline),
            policy: RefCell::default(),
            open: true,
        }
    }

    /// Who talks to whom.
    pub fn parties(&self) -> &Parties {
        &self.parties
    }

    /// What counts its bytes, for whoever carries them.
    pub fn meter(&self) -> Rc<Tally> {
        self.tally.clone()
    }

    /// `stage` is reached now; later stamps of the same stage change nothing.
    pub fn stamp(&self, stage: Stage) {
        self.stamp_at(stage, Instant::now());
    }

    fn stamp_at(&self, stage: Stage, at: Instant) {
        let mut timeline = self.timeline.get();
        timeline.stamp(stage, at);
        self.timeline.set(timeline);
    }

    /// The rule that allowed it, as `namespace/name`, for its log line.
    pub fn allowed_by(&self, policy: Text) {
        *self.policy.borrow_mut() = Some(policy);
    }

    /// The connection is over: counts it and writes its line.
    ///
    /// Returns the whole timeline, for those who keep it.
    pub fn close(mut self, outcome: &Outcome) -> Timeline {
        self.end(outcome)
    }

    fn end(&mut self, outcome: &Outcome) -> Timeline {
        self.open = false;
        if let Some(first) = self.tally.first.get() {
            self.stamp_at(Stage::FirstByte, first);
        }
        self.stamp(Stage::Closed);
        let timeline = self.timeline.get();
        self.count(outcome);
        self.log(outcome, &timeline);
        timeline
    }

    fn count(&self, outcome: &Outcome) {
        let reporter = self.parties.reporter;
        if let Some(fault) = outcome.fault(reporter) {
            self.shard.fault(fault);
        }
        match outcome.response_flag() {
            ResponseFlag::None => self.tally.series.closed(),
            response_flag => {
                let series = self.shard.series(&TrafficLabels { response_flag, ..self.parties.labels() });
                series.closed();
                series.failed();
            }
        }
    }

    fn log(&self, outcome: &Outcome, timeline: &Timeline) {
        let parties = &self.parties;
        // The log speaks from the local workload's point of view, the metrics from the server's.
        let (bytes_sent, bytes_recv) = match parties.reporter {
            Reporter::Source => (self.tally.received.get(), self.tally.sent.get()),
            Reporter::Destination => (self.tally.sent.get(), self.tally.received.get()),
        };
        let lived = timeline.at(Stage::Closed).unwrap_or_default();
        let held = self.policy.borrow();
        let policy = outcome.policy().or(held.as_ref()).map(|name| &**name);
        // A clean end has the reference's fields and no more.
        let name = Some(outcome.as_str()).filter(|_| !matches!(outcome, Outcome::Complete));
        match outcome.error(parties.reporter) {
            None => line!(
                Level::INFO,
                parties,
                {
                    bytes_sent,
                    bytes_recv,
                    duration = format!("{}ms", lived.as_millis()),
                    policy,
                    outcome = name,
                },
                "connection complete"
            ),
            Some(error) => line!(
                Level::ERROR,
                parties,
                {
                    bytes_sent,
                    bytes_recv,
                    duration = format!("{}ms", lived.as_millis()),
                    policy,
                    outcome = name,
                    error,
                },
                "connection complete"
            ),
        }
    }
}

impl Meter for Tally {
    fn to_upstream(&self, bytes: usize) {
        self.received(bytes as u64);
    }

    fn to_downstream(&self, bytes: usize) {
        self.sent(bytes as u64);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.open {
            self.end(&Outcome::Drained);
        }
    }
}

/// A connection is refused before it has a record: one line at warn, one counter, nothing else.
///
/// `dst_addr` is the original destination, or on the tunnel port the pod's address and port 15008. `error` is the whole
/// text for the operator, causes included.
pub fn early_deny(
    shard: &Shard,
    reporter: Reporter,
    client: ClientAddr,
    dst_addr: SocketAddr,
    why: Refusal,
    error: &dyn Display,
) {
    shard.refused(why);
    tracing::event!(
        target: ACCESS,
        parent: None,
        Level::WARN,
        src.addr = %client,
        dst.addr = %dst_addr,
        direction = reporter.direction(),
        error = error.to_string(),
        "connection failed"
    );
}
