//! From the mesh to a pod: one connection from start to end.
//!
//! [`Inbound`] exists once per worker. A tunnel arrives on the pod's 15008, proves its peer, and yields CONNECT
//! streams; each is parsed (`request.rs`), given its address in the pod (`target.rs`), judged (`admit.rs`), dialled
//! and carried. Plaintext callers go the same way, with no identity to show (`passthrough.rs`). The application is
//! dialled only with an [`admit::Admitted`] in hand, and only when it has answered does the caller get its 200.

pub mod admit;
mod describe;
mod passthrough;
pub mod request;
pub mod target;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, StatusCode};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::capture::{Accepted, Acceptor, Pod, SpoofError, connected};
use crate::flow::early_deny;
use crate::flow::live::Live;
use crate::flow::outcome::Outcome;
use crate::flow::record::Record;
use crate::hbone::{self, Handshakes, Incoming, Placement, Secured, Server, TCP_DEADLINE, WorkerId};
use crate::identity::{Store, VerifiedPeer};
use crate::mesh::{Handle, Snapshot, Workload};
use crate::net::ClientAddr;
use crate::net::mailbox::Post;
use crate::net::socket::SourceAddress;
use crate::policy::Facts;
use crate::telemetry::{Counter, Refusal, Reporter, Shard};
use admit::{Admitted, Cut, Judged, Subject, admit};
use describe::Described;
use request::TunnelRequest;
use target::target;

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

/// How long a connection waits for the control plane to name its pod.
const WORKLOAD_DEADLINE: Duration = Duration::from_secs(5);

/// One worker's inbound side.
pub struct Inbound {
    worker: WorkerId,
    config: Config,
    mesh: Handle,
    store: Store,
    handshakes: Handshakes,
    placement: Arc<Placement>,
    post: Post<Self>,
    shard: Shard,
    replaced: Counter,
    judged: Judged,
    tunnels: Live<Arc<Pod>, End>,
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
    local: std::net::SocketAddr,
    secured: hbone::Stamps,
}

/// Why an application was not reached.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Source(#[from] SpoofError),
    #[error("{0}")]
    Connect(#[from] io::Error),
}

impl Inbound {
    /// One worker's inbound side, with no connections.
    #[expect(clippy::too_many_arguments, reason = "each room's handles are given one by one, and only here")]
    pub fn new(
        worker: WorkerId,
        config: Config,
        mesh: Handle,
        store: Store,
        handshakes: Handshakes,
        placement: Arc<Placement>,
        post: Post<Self>,
        shard: Shard,
        replaced: Counter,
    ) -> Rc<Self> {
        Rc::new(Self {
            worker,
            config,
            mesh,
            store,
            handshakes,
            placement,
            post,
            shard,
            replaced,
            judged: Judged::default(),
            tunnels: Live::default(),
        })
    }

    /// Serves one pod's tunnel port until it is dropped.
    pub async fn serve(self: Rc<Self>, pod: Arc<Pod>, mut listener: Acceptor) {
        loop {
            let accepted = listener.next().await;
            tokio::task::spawn_local(self.clone().arrived(pod.clone(), accepted));
        }
    }

    /// Judges every live connection by the latest snapshot.
    pub fn judge_again(&self) {
        admit::judge_again(&self.judged, &self.mesh.load());
    }

    /// Ends every connection and tunnel of `pod` at once.
    pub fn cut(&self, pod: &str) {
        self.judged.cut(|subject| (*subject.pod.uid == *pod).then_some(Cut::Drained));
        self.tunnels.cut(|of| (*of.uid == *pod).then_some(End::Now));
    }

    /// Tells every peer to open no more streams; those there are run on.
    pub fn drain(&self) {
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
        let _open = self.shard.socket(Reporter::Destination);
        let ticket = self.tunnels.enter(pod.clone());
        let client = accepted.client;
        let local = accepted.socket.local_addr();
        let secured = tokio::select! {
            secured = self.secure(&pod, accepted) => secured,
            _ = ticket.cut() => return,
        };
        let secured = match secured {
            Ok(secured) => secured,
            Err((kind, why)) => {
                let local = local.map_or_else(|_| client.addr(), crate::net::canonical);
                early_deny(Reporter::Destination, client.addr(), local, &why);
                return self.shard.refused(kind);
            }
        };
        let owner = self.placement.least_loaded(self.worker);
        if owner == self.worker {
            return self.tunnel(pod, secured).await;
        }
        self.post.to(owner, move |inbound| {
            let inbound = inbound.clone();
            tokio::task::spawn_local(async move {
                let _open = inbound.shard.socket(Reporter::Destination);
                inbound.tunnel(pod, secured).await;
            });
        });
    }

    async fn secure(&self, pod: &Pod, accepted: Accepted) -> Result<Secured, (Refusal, String)> {
        let local = self.workload(pod).await.ok_or_else(|| (Refusal::UnknownWorkload, unknown(pod)))?;
        let identity = local.identity().map_err(|cause| (Refusal::Identity, cause.to_string()))?;
        let credentials = self
            .store
            .credentials(identity)
            .await
            .map_err(|cause| (Refusal::Identity, format!("identity error: {cause}")))?;
        self.handshakes
            .accept(accepted.socket, credentials.server_config())
            .await
            .map_err(|cause| (Refusal::Handshake, format!("tls handshake error: {cause}")))
    }

    /// One tunnel, on the worker that owns it.
    async fn tunnel(self: Rc<Self>, pod: Arc<Pod>, secured: Secured) {
        let _carried = self.placement.carry(self.worker);
        let ticket = self.tunnels.enter(pod.clone());
        let tunnel = Rc::new(Tunnel {
            pod,
            peer: secured.peer.clone(),
            client: ClientAddr::new(secured.remote),
            local: secured.local,
            secured: secured.stamps,
        });
        let (drain, draining) = oneshot::channel::<()>();
        let control = async {
            let mut drain = Some(drain);
            loop {
                match ticket.cut().await {
                    End::InOrder => drop(drain.take().map(|drain| drain.send(()))),
                    End::Now => return,
                }
            }
        };
        let serving = async {
            let server = Server::start(secured, &self.config.hbone).await.map_err(|cause| cause.to_string())?;
            let each = |incoming| {
                tokio::task::spawn_local(self.clone().stream(tunnel.clone(), incoming));
            };
            // Never dropped before `serve` ends, so an error here cannot be taken for the order to drain.
            server.serve(each, async { drop(draining.await) }).await
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
        let at = Instant::now();
        let deny = |incoming: Incoming, status: StatusCode, kind, why: &str| {
            incoming.refuse(status);
            early_deny(Reporter::Destination, tunnel.client.addr(), tunnel.local, why);
            self.shard.refused(kind);
        };
        let request = match TunnelRequest::parse(incoming.head()) {
            Ok(request) => request,
            Err(bad) => return deny(incoming, StatusCode::BAD_REQUEST, Refusal::BadRequest, &bad.to_string()),
        };
        let Some(local) = self.workload(&tunnel.pod).await else {
            let why = unknown(&tunnel.pod);
            return deny(incoming, StatusCode::SERVICE_UNAVAILABLE, Refusal::UnknownWorkload, &why);
        };
        let found = target(&request.authority, tunnel.local.ip(), &local, &self.mesh.load());
        let found = match found {
            Ok(found) => found,
            Err(none) => return deny(incoming, none.status(), Refusal::NoTarget, &none.to_string()),
        };
        let described = self.describe_tunnel(&tunnel, &request, &found, &local, incoming.head().headers());
        let mut record = self.open(described, at);
        record.stamp_tunnel(tunnel.secured);

        let facts =
            Facts { source: Some(tunnel.peer.identity().clone()), client: tunnel.client, target: found.addr };
        let subject = Subject { pod: tunnel.pod.clone(), facts, asked: request.service.clone() };
        let admitted = match self.admit(subject, &local, &mut record) {
            Ok(admitted) => admitted,
            Err(denied) => {
                // Not 403: L7 proxies in front of us tell the two apart.
                incoming.refuse(StatusCode::UNAUTHORIZED);
                return record.close(denied);
            }
        };
        let outcome = self.connect_and_carry(&admitted, incoming, &local, &mut record).await;
        record.close(outcome);
    }

    async fn connect_and_carry(
        &self,
        admitted: &Admitted,
        mut incoming: Incoming,
        local: &Workload,
        record: &mut Record,
    ) -> Outcome {
        let _carried = self.placement.carry(self.worker);
        let app = tokio::select! {
            app = self.dial(admitted) => app,
            cut = admitted.revoked() => {
                incoming.refuse(StatusCode::UNAUTHORIZED);
                return cut_short(cut);
            }
            () = incoming.cancelled() => return Outcome::ResetByClient,
        };
        let app = match app {
            Ok(app) => app,
            Err(cause) => {
                incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
                return Outcome::AppUnreachable(cause.to_string());
            }
        };
        record.stamp(crate::flow::record::Stamp::Connect);
        let baggage = (self.config.baggage)
            .then(|| describe::baggage(local, &self.config.cluster))
            .and_then(|text| HeaderValue::from_str(&text).ok());
        let opened = match incoming.accept(baggage) {
            Ok(opened) => opened,
            Err(cause) => return Outcome::TunnelLost(cause.to_string()),
        };
        tokio::select! {
            ended = opened.carry(app, &describe::TowardsPod(record)) => describe::ended(ended),
            cut = admitted.revoked() => cut_short(cut),
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

    fn admit(&self, subject: Subject, local: &Workload, record: &mut Record) -> Result<Admitted, Outcome> {
        match admit(&self.judged, subject, local, &self.mesh.load()) {
            Ok(admitted) => {
                record.allowed_by(admitted.by());
                Ok(admitted)
            }
            Err(denial) => Err(Outcome::Denied(denial)),
        }
    }

    fn open(&self, described: Described, at: Instant) -> Record {
        Record::open(&self.shard, described.0, at)
    }

    /// The pod's workload, waiting for the control plane to name it.
    async fn workload(&self, pod: &Pod) -> Option<Arc<Workload>> {
        let find = |mesh: &Snapshot| {
            mesh.local_workload(&pod.name, &pod.namespace, &pod.service_account).cloned()
        };
        self.mesh.wait_for(WORKLOAD_DEADLINE, find).await
    }
}

fn unknown(pod: &Pod) -> String {
    let (sa, ns, name) = (&pod.service_account, &pod.namespace, &pod.name);
    format!("failed to fetch information about local workload: {sa}.{ns} ({name})")
}

fn cut_short(cut: Cut) -> Outcome {
    match cut {
        Cut::Policy(denial) => Outcome::Revoked(denial),
        Cut::Drained => Outcome::Drained,
    }
}
