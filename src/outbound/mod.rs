//! From a pod to the mesh: one connection from start to end.
//!
//! [`Outbound`] exists once per worker. A connection is captured, resolved to a [`route::Route`], placed on the worker
//! that will own it, opened by `carry.rs` and carried until both ends are done. Nothing here judges whether it
//! may be: the far side does that. No byte of the client leaves before the open succeeded. Placement:
//! `docs/decisions/0001-tunnels-per-source-pod.md`; when a record opens: `docs/decisions/0005-when-a-record-opens.md`.

pub mod balance;
mod carry;
pub mod route;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Display;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;

use crate::capture::{Accepted, Acceptor, OUTBOUND_PORT, Pod, is_own_port};
use crate::flow::early_deny;
use crate::flow::live::Live;
use crate::hands::Hands;
use crate::hbone::{self, Pool, TunnelKey, WorkerId};
use crate::mesh::Workload;
use crate::net::socket::{original_dst, reset_on_close};
use crate::net::{ClientAddr, OriginalDst, canonical};
use crate::telemetry::{Refusal, Reporter};
use balance::Chance;
use route::{NoRoute, Route, Source, route};

/// What this room needs to know of the settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network this node is on.
    pub network: Arc<str>,
    /// This cluster, for baggage.
    pub cluster: Arc<str>,
    /// Tunnel parameters.
    pub hbone: hbone::Config,
}

/// One worker's outbound side.
pub struct Outbound {
    hands: Hands<Self>,
    config: Config,
    live: Live<Subject, ()>,
    pools: RefCell<HashMap<Arc<str>, Rc<Pool>>>,
    chance: RefCell<Chance>,
    /// Set for good by [`Outbound::drain`].
    draining: Cell<bool>,
}

/// One live connection, for operators and for the end of its pod.
#[derive(Debug)]
pub struct Subject {
    /// The pod that dialled.
    pub pod: Arc<Pod>,
    /// The application's address.
    pub client: ClientAddr,
    /// What it dialled.
    pub original: OriginalDst,
    /// The endpoint tried last, and whether through a tunnel.
    pub hop: Cell<(SocketAddr, bool)>,
}

/// A captured connection with its first decision, on its way to the worker that will own it.
struct Placed {
    pod: Arc<Pod>,
    accepted: Accepted,
    original: OriginalDst,
    source: Arc<Workload>,
    route: Route,
}

impl Outbound {
    /// One worker's outbound side, with no connections.
    pub fn new(hands: Hands<Self>, config: Config) -> Rc<Self> {
        Rc::new(Self {
            hands,
            config,
            live: Live::default(),
            pools: RefCell::default(),
            chance: RefCell::default(),
            draining: Cell::new(false),
        })
    }

    /// Serves one pod's outgoing connections until the listener closes.
    pub async fn serve(self: Rc<Self>, pod: Arc<Pod>, mut listener: Acceptor) {
        while let Some(accepted) = listener.next().await {
            tokio::task::spawn_local(self.clone().captured(pod.clone(), accepted));
        }
    }

    /// Ends every connection of pods that have ended at once, and the tunnels of `pod`, which is one of them.
    pub fn cut_ended(&self, pod: &str) {
        self.live.cut(|subject| subject.pod.has_ended().then_some(()));
        self.pools.borrow_mut().remove(pod);
    }

    /// Lets go of all tunnels, now and as connections end: each closes in order when its last stream is done and the
    /// peer has taken what was sent.
    pub fn drain(&self) {
        self.draining.set(true);
        self.pools.borrow_mut().clear();
    }

    /// Ends everything at once.
    pub fn cut_all(&self) {
        self.live.cut(|_| Some(()));
        self.pools.borrow_mut().clear();
    }

    /// Shows each live connection.
    pub fn each(&self, show: impl FnMut(&Subject)) {
        self.live.each(show);
    }

    /// From accept to the worker that will own the connection.
    async fn captured(self: Rc<Self>, pod: Arc<Pod>, accepted: Accepted) {
        let open = self.hands.shard.socket(Reporter::Source);
        // Until its owner counts it: the end of the process waits for what is carried.
        let placing = self.hands.placement.carry(self.hands.worker);
        // Boxed, so that what this needs is not kept for as long as the connection lives.
        let Some((owner, placed)) = Box::pin(self.place(pod, accepted)).await else { return };
        if owner == self.hands.worker {
            drop(placing);
            return self.carry(placed).await;
        }
        drop(open);
        self.hands.post.to(owner, move |outbound| {
            let outbound = outbound.clone();
            tokio::task::spawn_local(async move {
                let _open = outbound.hands.shard.socket(Reporter::Source);
                drop(placing);
                outbound.carry(placed).await;
            });
        });
    }

    /// Who dialled, where it goes, and which worker shall carry it. `None` when it was refused.
    async fn place(&self, pod: Arc<Pod>, accepted: Accepted) -> Option<(WorkerId, Box<Placed>)> {
        let client = accepted.client;
        let original = self.original(&accepted.socket, client)?;
        let refuse = |kind, why: &dyn Display| self.refuse(&accepted.socket, client, original, kind, why);
        let source = self.hands.workload(&pod).await;
        if pod.has_ended() {
            refuse(Refusal::Draining, &"the pod has ended");
            return None;
        }
        let source = source.map_err(|why| refuse(Refusal::UnknownWorkload, &why)).ok()?;
        let route =
            self.decide(&source, client, original, &[]).map_err(|why| refuse(refusal(&why), &why)).ok()?;
        let owner = match self.key(&source, client, &route) {
            Some(key) => self.hands.placement.place(&key, self.hands.worker),
            None => self.hands.placement.least_loaded(self.hands.worker),
        };
        Some((owner, Box::new(Placed { pod, accepted, original, source, route })))
    }

    /// What was dialled. `None` when the connection was refused here.
    fn original(&self, socket: &TcpStream, client: ClientAddr) -> Option<OriginalDst> {
        let original = match original_dst(socket) {
            Ok(original) => original,
            Err(cause) => {
                // The connection is gone already: there is no address to speak of, and nobody to tell.
                tracing::debug!(%client, %cause, "a captured connection has no original destination");
                return None;
            }
        };
        // Nobody redirected it: the pod dialled this listener itself, and carrying it on would come back here.
        let direct = original.port() == OUTBOUND_PORT
            && socket.local_addr().is_ok_and(|local| canonical(local) == original.addr());
        if direct || (original.ip().is_loopback() && is_own_port(original.port())) {
            self.refuse(socket, client, original, Refusal::RecursiveCall, &NoRoute::RecursiveCall);
            return None;
        }
        Some(original)
    }

    /// Refuses a connection that has no record yet: the application sees a reset.
    fn refuse(
        &self,
        socket: &TcpStream,
        client: ClientAddr,
        dst: OriginalDst,
        kind: Refusal,
        why: &dyn Display,
    ) {
        early_deny(&self.hands.shard, Reporter::Source, client, dst.addr(), kind, why);
        reset_on_close(socket);
    }

    fn decide(
        &self,
        source: &Workload,
        client: ClientAddr,
        original: OriginalDst,
        tried: &[Arc<str>],
    ) -> Result<Route, NoRoute> {
        let from = Source { workload: source, client: client.ip() };
        route(
            &from,
            original,
            &self.config.network,
            &self.hands.mesh.load(),
            &mut *self.chance.borrow_mut(),
            tried,
        )
    }

    /// The key of the tunnel that `route` needs.
    fn key(&self, source: &Workload, client: ClientAddr, route: &Route) -> Option<TunnelKey> {
        let Route::Tunnel(to) = route else { return None };
        Some(TunnelKey {
            source: source.identity().ok()?.clone(),
            source_ip: client.ip(),
            expected: to.expected.clone(),
            to: to.to,
            workload: to.workload.uid.clone(),
        })
    }

    fn pool(&self, pod: &Pod) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        let pool = pools.entry(pod.uid.clone()).or_insert_with(|| {
            Pool::start(self.hands.worker, self.config.hbone.clone(), self.hands.placement.clone())
        });
        pool.clone()
    }
}

/// The counter of connections refused before they had a record.
fn refusal(why: &NoRoute) -> Refusal {
    match why {
        NoRoute::RecursiveCall => Refusal::RecursiveCall,
        NoRoute::NoHealthyUpstream { .. } => Refusal::NoHealthyUpstream,
        NoRoute::UnknownWaypoint { .. }
        | NoRoute::UnknownGateway { .. }
        | NoRoute::WaypointUnsupported { .. }
        | NoRoute::GatewayUnsupported { .. } => Refusal::UnknownWaypoint,
        NoRoute::Unreachable { .. }
        | NoRoute::NoService { .. }
        | NoRoute::NoAddress { .. }
        | NoRoute::HostnameUnsupported { .. }
        | NoRoute::InvalidIdentity { .. } => Refusal::UnknownDestination,
    }
}
