//! From the mesh to a pod: one connection from start to end.
//!
//! [`Inbound`] exists once per worker. A tunnel arrives on the pod's 15008, proves its peer, and yields CONNECT
//! streams; each is parsed (`request.rs`), given its address in the pod (`target.rs`), judged (`admit.rs`), dialled
//! and carried. Plaintext callers go the same way, with no identity to show (`passthrough.rs`). The application is
//! dialled only with an [`admit::Admitted`] in hand, and only when it has answered does the caller get its 200. Why it
//! is a proof: `docs/decisions/0002-admission-is-a-proof.md`.

pub mod admit;
mod passthrough;
pub mod request;
pub mod target;

use std::cell::Cell;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::capture::{Accepted, Acceptor, Pod, SpoofError, connected};
use crate::flow::live::Live;
use crate::flow::{
    Baggage, Carrying, Outcome, Parties, Peer, Record, Seen, Share, Side, Stage, Timeline, baggage_of,
    early_deny, labels_of_service, peer_of,
};
use crate::hands::Hands;
use crate::hbone::{self, Carried, HandshakeError, Incoming, Opened, Secured, Server, TCP_DEADLINE};
use crate::identity::VerifiedPeer;
use crate::mesh::Workload;
use crate::net::ClientAddr;
use crate::net::socket::{SourceAddress, reset_on_close};
use crate::policy::{Denial, Facts};
use crate::telemetry::{Counter, Refusal, Reporter, Security, Text};
use admit::{Admitted, Cut, Judged, Subject, admit};
use request::TunnelRequest;
use target::{NoTarget, Target, target};

/// What this room needs to know of the settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network this node is on.
    pub network: Arc<str>,
    /// This cluster, for baggage.
    pub cluster: Arc<str>,
    /// Whether requests' baggage is read, and answers carry ours.
    pub baggage: bool,
    /// Tunnel parameters.
    pub hbone: hbone::Config,
}

/// One worker's inbound side.
pub struct Inbound {
    hands: Hands<Self>,
    config: Config,
    replaced: Counter,
    judged: Judged,
    tunnels: Live<Arc<Pod>, End>,
    /// Set for good by [`Inbound::drain`], for tunnels that come to this worker after it.
    draining: Cell<bool>,
}

/// How a tunnel is told to end.
#[derive(Clone, Copy, Debug)]
enum End {
    /// No new streams; those there are run on.
    InOrder,
    /// At once.
    Now,
}

/// What all streams of one tunnel have in common.
struct Tunnel {
    pod: Arc<Pod>,
    peer: VerifiedPeer,
    client: ClientAddr,
    /// Our address: the pod's, port 15008.
    local: SocketAddr,
}

/// A connection of which both ends are open; boxed, so that what an open needs is not kept for as long as it lives.
struct Begun {
    carrying: Pin<Box<dyn Future<Output = ()>>>,
    _carried: Carried,
}

/// Carries `way` until it ends, or until the connection may not be any more.
fn carrying(
    record: Record,
    admitted: Admitted,
    mut way: impl FnMut(&mut Context<'_>) -> Poll<Outcome> + Unpin + 'static,
) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(Carrying::new(record, move |cx| {
        // Captured, and so dropped, before the proof: the connection ends before it leaves the list of those that are judged.
        let way = &mut way;
        match admitted.poll_revoked(cx) {
            Poll::Ready(cut) => Poll::Ready(cut_short(cut)),
            Poll::Pending => way(cx),
        }
    }))
}

/// Why an application was not reached.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Source(#[from] SpoofError),
    #[error("{0}")]
    Connect(#[from] io::Error),
}

impl DialError {
    fn into_io(self) -> io::Error {
        match self {
            Self::Connect(cause) => cause,
            Self::Source(cause) => io::Error::other(cause.to_string()),
        }
    }
}

impl Inbound {
    /// One worker's inbound side, with no connections.
    pub fn new(hands: Hands<Self>, config: Config, replaced: Counter) -> Rc<Self> {
        Rc::new(Self {
            hands,
            config,
            replaced,
            judged: Judged::default(),
            tunnels: Live::default(),
            draining: Cell::new(false),
        })
    }

    /// Serves one pod's tunnel port until the listener closes.
    pub async fn serve(self: Rc<Self>, pod: Arc<Pod>, mut listener: Acceptor) {
        while let Some(accepted) = listener.next().await {
            tokio::task::spawn_local(self.clone().arrived(pod.clone(), accepted));
        }
    }

    /// Judges every live connection by the latest snapshot.
    pub fn judge_again(&self) {
        admit::judge_again(&self.judged, &self.hands.mesh.load());
    }

    /// Ends every connection and tunnel of pods that have ended, at once.
    pub fn cut_ended(&self) {
        self.judged.cut(|subject| subject.pod.has_ended().then_some(Cut::Drained));
        self.tunnels.cut(|pod| pod.has_ended().then_some(End::Now));
    }

    /// Tells every peer to open no more streams; those there are run on.
    pub fn drain(&self) {
        self.draining.set(true);
        self.tunnels.cut(|_| Some(End::InOrder));
    }

    /// Ends everything at once.
    pub fn cut_all(&self) {
        self.judged.cut(|_| Some(Cut::Drained));
        self.tunnels.cut(|_| Some(End::Now));
    }

    /// Shows each live connection.
    pub fn each(&self, show: impl FnMut(&Subject)) {
        self.judged.each(show);
    }

    /// From accept to the worker that will own the tunnel.
    async fn arrived(self: Rc<Self>, pod: Arc<Pod>, accepted: Accepted) {
        let _open = self.hands.shard.socket(Reporter::Destination);
        // Until its owner counts it: the end of the process waits for what is carried.
        let placing = self.hands.placement.carry(self.hands.worker);
        let ticket = self.tunnels.enter(pod.clone());
        let client = accepted.client;
        let local = accepted.socket.local_addr();
        let ended = async {
            // A client that was let in hears of the drain on its tunnel, where it can tell that nothing was lost.
            while let End::InOrder = ticket.cut().await {}
        };
        let secured = tokio::select! {
            secured = self.secure(&pod, accepted) => secured,
            () = ended => return,
        };
        let secured = match secured {
            Ok(secured) => secured,
            Err((kind, why)) => {
                let local = local.map_or_else(|_| client.addr(), crate::net::canonical);
                return early_deny(&self.hands.shard, Reporter::Destination, client, local, kind, &why);
            }
        };
        let owner = self.hands.placement.least_loaded(self.hands.worker);
        if owner == self.hands.worker {
            drop(placing);
            return self.tunnel(pod, secured).await;
        }
        self.hands.post.to(owner, move |inbound| {
            let inbound = inbound.clone();
            tokio::task::spawn_local(async move {
                let _open = inbound.hands.shard.socket(Reporter::Destination);
                drop(placing);
                inbound.tunnel(pod, secured).await;
            });
        });
    }

    async fn secure(&self, pod: &Arc<Pod>, accepted: Accepted) -> Result<Secured, (Refusal, String)> {
        let _place = pod
            .admit_unproven(accepted.client.ip())
            .map_err(|crowded| (Refusal::OverBudget, crowded.to_string()))?;
        let local = self.hands.workload(pod).await.map_err(|why| (Refusal::UnknownWorkload, why))?;
        let identity = local.identity().map_err(|cause| (Refusal::UnknownWorkload, cause.to_string()))?;
        let credentials = self
            .hands
            .store
            .credentials(identity)
            .await
            .map_err(|cause| (Refusal::UnknownWorkload, format!("identity error: {cause}")))?;
        let carrier = self.config.hbone.carrier;
        self.hands
            .handshakes
            .accept(accepted.socket.answer(), credentials.server_config(), carrier)
            .await
            .map_err(|cause| match cause {
                HandshakeError::Busy(_) => (Refusal::OverBudget, cause.to_string()),
                HandshakeError::Draining => (Refusal::Draining, cause.to_string()),
                cause => (Refusal::TlsHandshake, format!("tls handshake error: {cause}")),
            })
    }

    /// One tunnel, on the worker that owns it.
    async fn tunnel(self: Rc<Self>, pod: Arc<Pod>, secured: Secured) {
        if pod.has_ended() {
            return;
        }
        let _carried = self.hands.placement.carry(self.hands.worker);
        let ticket = self.tunnels.enter(pod.clone());
        let tunnel = Rc::new(Tunnel {
            pod,
            peer: secured.peer.clone(),
            client: ClientAddr::new(secured.remote),
            local: secured.local,
        });
        let (drain, told) = oneshot::channel::<()>();
        let control = async {
            let mut drain = Some(drain);
            if self.draining.get() {
                // The receiver lives as long as this future.
                let _ = drain.take().map(|drain| drain.send(()));
            }
            loop {
                match ticket.cut().await {
                    End::InOrder => drop(drain.take().map(|drain| drain.send(()))),
                    End::Now => return,
                }
            }
        };
        let serving = async {
            let share = Share::of(&tunnel.pod.uid);
            let server =
                Server::start(secured, &self.config.hbone, share).await.map_err(|cause| cause.to_string())?;
            let each = |incoming| {
                tokio::task::spawn_local(self.clone().stream(tunnel.clone(), incoming));
            };
            // Never dropped before `serve` ends, so an error here cannot be taken for the order to drain.
            server.serve(each, async { drop(told.await) }).await
        };
        tokio::select! {
            ended = serving => if let Err(why) = ended {
                tracing::debug!(peer = %tunnel.client, %why, "tunnel ended");
            },
            () = control => {}
        }
    }

    /// One CONNECT, from its head to its end.
    async fn stream(self: Rc<Self>, tunnel: Rc<Tunnel>, incoming: Incoming) {
        let Some(begun) = Box::pin(self.begin(&tunnel, incoming)).await else { return };
        begun.carrying.await;
    }

    /// From the head to the 200. `None` when it was refused, and everybody has been told.
    async fn begin(&self, tunnel: &Tunnel, incoming: Incoming) -> Option<Begun> {
        let at = Instant::now();
        let deny = |incoming: Incoming, status: StatusCode, kind, why: &dyn Display| {
            incoming.refuse(status);
            early_deny(&self.hands.shard, Reporter::Destination, tunnel.client, tunnel.local, kind, why);
            None
        };
        let request = match TunnelRequest::parse(incoming.head()) {
            Ok(request) => request,
            Err(bad) => return deny(incoming, StatusCode::BAD_REQUEST, Refusal::BadRequest, &bad),
        };
        let local = match self.hands.workload(&tunnel.pod).await {
            Ok(local) => local,
            Err(why) => {
                return deny(incoming, StatusCode::SERVICE_UNAVAILABLE, Refusal::UnknownWorkload, &why);
            }
        };
        let found = target(&request.authority, tunnel.local.ip(), &local, &self.hands.mesh.load());
        let found = match found {
            Ok(found) => found,
            Err(none) => return deny(incoming, none.status(), refusal(&none), &none),
        };
        let parties = self.parties(tunnel, &request, &found, &local, incoming.head().headers());
        let mut timeline = Timeline::new(at);
        timeline.stamp(Stage::Resolved, Instant::now());
        let record = Record::open(&self.hands.shard, timeline, parties);

        let facts =
            Facts { source: Some(tunnel.peer.identity().clone()), client: tunnel.client, target: found.addr };
        let (pod, asked) = (tunnel.pod.clone(), request.service.clone());
        self.hands.policies(&pod).await;
        let subject = Subject { pod, local: local.clone(), facts, asked };
        let admitted = match self.admit(subject, &record) {
            Ok(admitted) => admitted,
            Err(denied) => {
                // Not 403: L7 proxies in front of us tell the two apart.
                incoming.refuse(StatusCode::UNAUTHORIZED);
                record.close(&denied);
                return None;
            }
        };
        let carried = self.hands.placement.carry(self.hands.worker);
        match self.connect(&admitted, incoming, &local, &record).await {
            Ok((app, opened)) => {
                let mut stream = opened.carry(app, record.meter());
                let way = move |cx: &mut Context<'_>| {
                    Pin::new(&mut stream).poll(cx).map(|ended| ended.outcome(Side::Server))
                };
                Some(Begun { carrying: carrying(record, admitted, way), _carried: carried })
            }
            Err(outcome) => {
                record.close(&outcome);
                None
            }
        }
    }

    /// Dials the application, and answers the request.
    async fn connect(
        &self,
        admitted: &Admitted,
        mut incoming: Incoming,
        local: &Workload,
        record: &Record,
    ) -> Result<(TcpStream, Opened), Outcome> {
        let app = tokio::select! {
            app = self.dial(admitted) => app,
            cut = admitted.revoked() => {
                incoming.refuse(StatusCode::UNAUTHORIZED);
                return Err(cut_short(cut));
            }
            () = incoming.cancelled() => {
                return Err(Outcome::Reset { by: Side::Client, seen: Seen::Stream(CANCEL) });
            }
        };
        let app = match app {
            Ok(app) => app,
            Err(cause) => {
                let outcome = Outcome::of_dial(cause.into_io());
                match outcome {
                    // 503 would say that nobody has seen the connection, and have it opened again.
                    Outcome::Reset { .. } => drop(incoming.accept(None)),
                    _ => incoming.refuse(StatusCode::SERVICE_UNAVAILABLE),
                }
                return Err(outcome);
            }
        };
        record.stamp(Stage::Connect);
        let baggage = (self.config.baggage)
            .then(|| baggage_of(local, &self.config.cluster))
            .flatten()
            .and_then(|text| HeaderValue::from_str(&text).ok());
        match incoming.accept(baggage) {
            Ok(opened) => Ok((app, opened)),
            Err(cause) => {
                reset_on_close(&app);
                Err(Outcome::TunnelLost(cause.to_string()))
            }
        }
    }

    /// Dials the application of an admitted connection, and nothing else: the proof names the address.
    async fn dial(&self, admitted: &Admitted) -> Result<TcpStream, DialError> {
        let dialled = admitted.pod().dial_as(admitted.client().ip(), admitted.target())?;
        if dialled.source == SourceAddress::Replaced {
            self.replaced.increment();
        }
        Ok(connected(dialled.socket, TCP_DEADLINE).await?)
    }

    fn admit(&self, subject: Subject, record: &Record) -> Result<Admitted, Outcome> {
        if subject.pod.has_ended() {
            return Err(Outcome::Drained);
        }
        match admit(&self.judged, subject, &self.hands.mesh.load()) {
            Ok(admitted) => {
                if let Some(policy) = admitted.by() {
                    record.allowed_by(policy.to_string().into());
                }
                Ok(admitted)
            }
            Err(denial) => Err(Outcome::Denied { reason: denial.to_string(), policy: denied_by(&denial) }),
        }
    }

    /// Who talks to whom on a tunnel's stream.
    fn parties(
        &self,
        tunnel: &Tunnel,
        request: &TunnelRequest,
        found: &Target,
        local: &Workload,
        headers: &HeaderMap,
    ) -> Parties {
        let mesh = self.hands.mesh.load();
        let identity = tunnel.peer.identity();
        // Behind a gateway the address is the gateway's and says nothing about the source.
        let through_gateway =
            request.from_network.as_deref().is_some_and(|of| !of.eq_ignore_ascii_case(&self.config.network));
        let known =
            (!through_gateway).then(|| mesh.workload_at(&self.config.network, tunnel.client.ip())).flatten();
        let source = match known {
            Some(workload) => Peer { identity: Some(identity.clone()), ..peer_of(workload) },
            None => {
                let fields = headers.get_all("baggage").iter().map(HeaderValue::as_bytes);
                let baggage = (self.config.baggage).then(|| Baggage::decode(fields).ok().flatten()).flatten();
                Peer::source_from_baggage(&baggage.unwrap_or_default(), Some(identity.clone()))
            }
        };
        let service = found
            .service
            .as_ref()
            .or_else(|| mesh.guess_service(local, request.service.as_deref(), found.addr.port()));
        Parties {
            reporter: Reporter::Destination,
            client: tunnel.client,
            source,
            destination: peer_of(local),
            dst_addr: tunnel.local,
            hbone_addr: Some(request.authority.to_string().into()),
            service: service.map(|service| labels_of_service(service)),
            security: Security::MutualTls,
        }
    }
}

/// RST_STREAM code of a peer that no longer wants its stream (RFC 9113 §7).
const CANCEL: u32 = 8;

fn refusal(none: &NoTarget) -> Refusal {
    match none {
        NoTarget::Mismatch { .. } => Refusal::BadRequest,
        NoTarget::Recursive => Refusal::RecursiveCall,
        NoTarget::UnknownHost(_) | NoTarget::NoPort(..) | NoTarget::ApplicationTunnel(_) => {
            Refusal::UnknownDestination
        }
    }
}

/// The policy behind a denial.
fn denied_by(denial: &Denial) -> Option<Text> {
    let (Denial::Explicit(key)
    | Denial::NoneAllowed(key)
    | Denial::Missing(key)
    | Denial::MissingStrict(key)) = denial;
    Some(key.to_string().into())
}

fn cut_short(cut: Cut) -> Outcome {
    match cut {
        Cut::Policy(denial) => Outcome::PolicyChanged { policy: denied_by(&denial) },
        Cut::Drained => Outcome::Drained,
    }
}
