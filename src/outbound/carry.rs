//! Opens the route of one connection, carries its bytes, and says how it ended.
//!
//! Only the open is retried: the next endpoint of a service is tried while no byte of the client has left, at most
//! [`ATTEMPTS`] times within [`OPEN_DEADLINE`]. A verdict of the far side (any status but 503) is final, and so is
//! the failure of an address that the application chose itself.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;

use super::route::{NoRoute, Route, TunnelTo};
use super::{Outbound, Placed, Subject};
use crate::capture::connected;
use crate::flow::live::Ticket;
use crate::flow::relay::relay;
use crate::flow::{Carrying, Direction, Outcome, Parties, Peer, Record, Share, Side, Stage, Timeline};
use crate::flow::{baggage_of, labels_of_service, peer_of};
use crate::hbone::{
    Carried, ConnectRequest, DialPlan, HandshakeError, OpenError, Opened, TCP_DEADLINE, TraceIds, Tunnel,
};
use crate::mesh::{Protocol, Service};
use crate::telemetry::{Refusal, Reporter, Security};

/// Endpoints tried for one connection.
const ATTEMPTS: usize = 3;
/// Everything before the first byte: choosing, dialling, handshake, CONNECT, retries.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// What an open yields.
enum Upstream {
    Plain(TcpStream),
    Tunnel(Opened),
}

/// A connection of which both ends are open; boxed, so that what an open needs is not kept for as long as it lives.
struct Begun {
    carrying: Pin<Box<dyn Future<Output = ()>>>,
    _carried: Carried,
}

/// Why an open failed, and whether that says anything about other endpoints.
struct Failed {
    outcome: Outcome,
    elsewhere: bool,
}

impl Outbound {
    /// One connection on the worker that owns it, from its route to its end.
    pub(super) async fn carry(self: Rc<Self>, placed: Box<Placed>) {
        let Some(begun) = Box::pin(self.begin(placed)).await else { return };
        begun.carrying.await;
    }

    /// Opens the route and the record. `None` when that failed, and everybody has been told.
    async fn begin(self: &Rc<Self>, placed: Box<Placed>) -> Option<Begun> {
        if placed.pod.has_ended() {
            // It ended while the connection was on its way to this worker, which has cut the pod's others already.
            let Placed { accepted, original, .. } = &*placed;
            let why = &"the pod has ended";
            self.refuse(&accepted.socket, accepted.client, *original, Refusal::Draining, why);
            return None;
        }
        let carried = self.hands.placement.carry(self.hands.worker);
        let subject = Subject {
            pod: placed.pod.clone(),
            client: placed.accepted.client,
            original: placed.original,
            hop: Cell::new(hop(&placed.route)),
        };
        let ticket = self.live.enter(subject);
        let mut timeline = Timeline::new(placed.accepted.at);
        timeline.stamp(Stage::Resolved, std::time::Instant::now());
        let mut parties = self.parties(&placed, &placed.route);
        let opened = tokio::select! {
            opened = tokio::time::timeout(OPEN_DEADLINE, self.open(&placed, &ticket.facts().hop, &mut timeline, &mut parties)) => {
                opened.unwrap_or_else(|_| Err(late()))
            }
            () = ticket.cut() => Err(Outcome::Drained),
        };
        if self.draining.get() {
            self.pools.borrow_mut().remove(&placed.pod.uid);
        }
        let record = Record::open(&self.hands.shard, timeline, parties);
        let upstream = match opened {
            Ok(upstream) => upstream,
            Err(outcome) => {
                // Reset before it is logged: whoever waits for the line finds the connection ended.
                drop(placed);
                record.close(&outcome);
                return None;
            }
        };
        match TcpStream::from_std(placed.accepted.socket.answer()) {
            Ok(app) => Some(Begun { carrying: carrying(record, ticket, upstream, app), _carried: carried }),
            Err(cause) => {
                record.close(&Outcome::Broken { direction: Direction::Send, cause: Some(cause) });
                None
            }
        }
    }

    /// Opens the first endpoint that can be opened. `parties` names the one tried last.
    async fn open(
        &self,
        placed: &Placed,
        shown: &Cell<(SocketAddr, bool)>,
        timeline: &mut Timeline,
        parties: &mut Parties,
    ) -> Result<Upstream, Outcome> {
        let mut route = placed.route.clone();
        let mut tried: Vec<Arc<str>> = Vec::new();
        loop {
            let failed = match self.try_open(placed, &route, timeline).await {
                Ok(upstream) => return Ok(upstream),
                Err(failed) => failed,
            };
            let endpoint = match &route {
                Route::Plain { workload, service: Some(_), .. } => &workload.uid,
                Route::Tunnel(TunnelTo { workload, service: Some(_), .. }) => &workload.uid,
                _ => return Err(failed.outcome),
            };
            tried.push(endpoint.clone());
            if !failed.elsewhere || tried.len() == ATTEMPTS {
                return Err(failed.outcome);
            }
            // Without another endpoint, what the last one said is the answer.
            let next: Result<Route, NoRoute> =
                self.decide(&placed.source, placed.accepted.client, placed.original, &tried);
            let Ok(next) = next else { return Err(failed.outcome) };
            tracing::debug!(from = %endpoint, error = failed.outcome.error(Reporter::Source), "trying another endpoint");
            route = next;
            *parties = self.parties(placed, &route);
            shown.set(hop(&route));
        }
    }

    async fn try_open(
        &self,
        placed: &Placed,
        route: &Route,
        timeline: &mut Timeline,
    ) -> Result<Upstream, Failed> {
        let to = match route {
            Route::Tunnel(to) => return self.open_tunnel(placed, to, timeline).await.map(Upstream::Tunnel),
            Route::Plain { to, .. } => *to,
            Route::Passthrough(dst) => dst.addr(),
        };
        let dial = async { connected(placed.pod.dial_out(to)?, TCP_DEADLINE).await };
        match dial.await {
            Ok(upstream) if self.is_still_plain(placed, route) => {
                timeline.stamp(Stage::Tcp, std::time::Instant::now());
                Ok(Upstream::Plain(upstream))
            }
            Ok(_) => {
                let why = "the mesh changed while it was dialled, and plaintext is no longer the way there";
                let outcome = Outcome::ConnectFailed(io::Error::other(why));
                Err(Failed { outcome, elsewhere: true })
            }
            Err(cause) => {
                let outcome = Outcome::of_dial(cause);
                let elsewhere = !matches!(outcome, Outcome::Reset { .. });
                Err(Failed { outcome, elsewhere })
            }
        }
    }

    /// Whether `route`, decided before the connection was placed and dialled, would be plaintext by the latest
    /// snapshot too. Asked last, when no byte of the client has left.
    fn is_still_plain(&self, placed: &Placed, route: &Route) -> bool {
        match route {
            Route::Tunnel(_) => false,
            Route::Plain { workload, .. } => {
                let mesh = self.hands.mesh.load();
                mesh.workload(&workload.uid).is_none_or(|now| now.protocol == Protocol::Tcp)
            }
            Route::Passthrough(_) => {
                let now = self.decide(&placed.source, placed.accepted.client, placed.original, &[]);
                matches!(now, Ok(Route::Passthrough(_) | Route::Plain { .. }))
            }
        }
    }

    async fn open_tunnel(
        &self,
        placed: &Placed,
        to: &TunnelTo,
        timeline: &mut Timeline,
    ) -> Result<Opened, Failed> {
        let now = std::time::Instant::now;
        let final_ = |outcome| Failed { outcome, elsewhere: false };
        let client = placed.accepted.client;
        let key = self
            .key(&placed.source, client, &Route::Tunnel(to.clone()))
            .ok_or_else(|| final_(Outcome::Identity("the workload has no valid identity".into())))?;
        let credentials = self
            .hands
            .store
            .credentials(&key.source)
            .await
            .map_err(|cause| final_(Outcome::Identity(cause.to_string())))?;
        timeline.stamp(Stage::Certificate, now());
        let request = ConnectRequest {
            authority: to.authority,
            client: client.addr(),
            service: to.service.as_ref().map(|service| service.key.hostname.to_string()),
            baggage: baggage_of(&placed.source, &self.config.cluster).unwrap_or_default(),
            trace: TraceIds::random(),
        };
        let pool = self.pool(&placed.pod);
        let share = &Share::of(&placed.pod.uid);
        let new_tunnel = || async {
            // Asked for only here: most connections find a tunnel.
            let plan = DialPlan {
                to: to.to,
                pod: placed.pod.clone(),
                config: credentials.client_config(to.expected.clone()),
                carrier: self.config.hbone.carrier,
            };
            let secured = self.hands.handshakes.connect(plan).await?;
            let stamps = secured.stamps;
            Ok::<_, HandshakeError>((
                Tunnel::start(secured, &self.config.hbone, share.clone()).await?,
                stamps,
            ))
        };
        let mut refused_anew = false;
        loop {
            let stamps = Cell::new(None);
            let make = || async {
                let (tunnel, when) = new_tunnel().await?;
                stamps.set(Some(when));
                Ok(tunnel)
            };
            let acquired =
                pool.acquire(&key, make).await.map_err(|cause| failed(OpenError::Handshake(cause), to.to))?;
            timeline.stamp(Stage::Pool, now());
            if let Some(when) = stamps.take() {
                timeline.stamp(Stage::Tcp, when.tcp);
                timeline.stamp(Stage::Tls, when.tls);
            }
            let opened = acquired.tunnel.open(&request).await;
            pool.note_room(&key);
            match opened {
                Ok(opened) => {
                    timeline.stamp(Stage::Connect, now());
                    return Ok(opened);
                }
                // A tunnel that was there before may have died unnoticed, or be on its way out: that says nothing
                // about the endpoint, and a new tunnel settles it.
                Err(OpenError::Lost(_) | OpenError::Refused(_)) if acquired.reused => {
                    acquired.tunnel.retire();
                }
                // A peer that ends may say so on a new tunnel too, and has not seen the request; its successor
                // is there by now. Once, so that a peer that only refuses is not asked for ever.
                Err(OpenError::Refused(_)) if !refused_anew => {
                    refused_anew = true;
                    acquired.tunnel.retire();
                }
                Err(cause) => return Err(failed(cause, to.to)),
            }
        }
    }

    /// Who talks to whom on `route`.
    fn parties(&self, placed: &Placed, route: &Route) -> Parties {
        let labels = |service: &Option<Arc<Service>>| service.as_deref().map(labels_of_service);
        let (destination, dst_addr, hbone_addr, service, security) = match route {
            Route::Passthrough(dst) => (Peer::unknown(), dst.addr(), None, None, Security::Unknown),
            Route::Plain { to, workload, service } => {
                (peer_of(workload), *to, None, labels(service), Security::Unknown)
            }
            Route::Tunnel(to) => {
                let authority = to.authority.to_string().into();
                (peer_of(&to.workload), to.to, Some(authority), labels(&to.service), Security::MutualTls)
            }
        };
        Parties {
            reporter: Reporter::Source,
            client: placed.accepted.client,
            source: peer_of(&placed.source),
            destination,
            dst_addr,
            hbone_addr,
            service,
            security,
        }
    }
}

/// Where a route's bytes go, and whether through a tunnel.
fn hop(route: &Route) -> (SocketAddr, bool) {
    match route {
        Route::Passthrough(dst) => (dst.addr(), false),
        Route::Plain { to, .. } => (*to, false),
        Route::Tunnel(to) => (to.to, true),
    }
}

fn late() -> Outcome {
    let text = format!("not open within {}s", OPEN_DEADLINE.as_secs());
    Outcome::ConnectFailed(io::Error::new(io::ErrorKind::TimedOut, text))
}

fn failed(cause: OpenError, to: SocketAddr) -> Failed {
    let elsewhere = cause.may_try_elsewhere();
    let outcome = match cause {
        OpenError::Handshake(cause) => match cause {
            HandshakeError::Connect { cause, .. } => Outcome::ConnectFailed(cause.into_io()),
            HandshakeError::ConnectTimeout { after, .. } => Outcome::NetworkPolicySuspected(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer from {to} within {}s", after.as_secs()),
            )),
            HandshakeError::Http2(cause) => Outcome::Http2Handshake(cause),
            HandshakeError::Http2Timeout(after) => {
                Outcome::Http2Handshake(format!("no preface within {}s", after.as_secs()))
            }
            HandshakeError::Draining => Outcome::PoolDraining,
            HandshakeError::Tls(cause) => Outcome::Handshake(cause.to_string()),
            other @ (HandshakeError::TlsTimeout(_) | HandshakeError::Peer(_) | HandshakeError::Busy(_)) => {
                Outcome::Handshake(other.to_string())
            }
        },
        OpenError::Status(status) => Outcome::Refused(status),
        OpenError::Refused(cause) | OpenError::Lost(cause) | OpenError::Reset(cause) => Outcome::Http2(cause),
        OpenError::Timeout(after) => {
            Outcome::Http2(format!("no answer to CONNECT within {}s", after.as_secs()))
        }
    };
    Failed { outcome, elsewhere }
}

/// Carries until both ends are done, or until the connection is told to end.
fn carrying(
    record: Record,
    ticket: Ticket<Subject, ()>,
    upstream: Upstream,
    app: TcpStream,
) -> Pin<Box<dyn Future<Output = ()>>> {
    let meter = record.meter();
    match upstream {
        Upstream::Plain(upstream) => {
            let share = Share::of(&ticket.facts().pod.uid);
            let mut relaying = Box::pin(relay(app, upstream, meter, share));
            Box::pin(Carrying::new(record, move |cx| {
                // Captured, and so dropped, before the ticket: the connection ends before it leaves the list.
                let relaying = relaying.as_mut();
                match ticket.poll_cut(cx) {
                    Poll::Ready(()) => Poll::Ready(Outcome::Drained),
                    Poll::Pending => relaying.poll(cx).map(Outcome::from),
                }
            }))
        }
        Upstream::Tunnel(opened) => {
            let mut stream = opened.carry(app, meter);
            Box::pin(Carrying::new(record, move |cx| {
                let stream = Pin::new(&mut stream);
                match ticket.poll_cut(cx) {
                    Poll::Ready(()) => Poll::Ready(Outcome::Drained),
                    Poll::Pending => stream.poll(cx).map(|ended| ended.outcome(Side::Client)),
                }
            }))
        }
    }
}
