//! Plaintext callers: the same steps as a tunnel's stream, with no identity to show.

use std::net::TcpStream as StdStream;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use tokio::net::TcpStream;

use super::{Begun, Inbound, Subject, carrying, cut_short};
use crate::capture::{Accepted, Acceptor, Downstream, Pod, Unanswered, is_own_port};
use crate::flow::relay::relay;
use crate::flow::{
    Direction, Outcome, Parties, Peer, Record, Share, Stage, Timeline, early_deny, labels_of_service, peer_of,
};
use crate::hbone::Carried;
use crate::mesh::Workload;
use crate::net::socket::{original_dst, reset_on_close};
use crate::net::{ClientAddr, OriginalDst, TargetAddr};
use crate::policy::Facts;
use crate::telemetry::{Refusal, Reporter, Security};

/// A captured plaintext connection on its way to the worker that will own it.
struct Caller {
    pod: Arc<Pod>,
    socket: Unanswered,
    client: ClientAddr,
    original: OriginalDst,
    at: Instant,
    /// Keeps its port from being used in the client's name.
    downstream: Downstream,
}

impl Inbound {
    /// Serves one pod's plaintext port until the listener closes.
    pub async fn serve_plaintext(self: Rc<Self>, pod: Arc<Pod>, mut listener: Acceptor) {
        while let Some(accepted) = listener.next().await {
            let Some(caller) = self.caller(pod.clone(), accepted) else { continue };
            let owner = self.hands.placement.least_loaded(self.hands.worker);
            // Until its owner counts it: the end of the process waits for what is carried.
            let placing = self.hands.placement.carry(self.hands.worker);
            self.hands.post.to(owner, |inbound| {
                let inbound = inbound.clone();
                tokio::task::spawn_local(async move {
                    let _open = inbound.hands.shard.socket(Reporter::Destination);
                    inbound.clone().plaintext(caller, placing).await;
                });
            });
        }
    }

    fn caller(&self, pod: Arc<Pod>, accepted: Accepted) -> Option<Caller> {
        let Accepted { socket, client, at } = accepted;
        let original = match original_dst(&*socket) {
            Ok(original) => original,
            Err(cause) => {
                // The connection is gone already: there is no address to speak of, and nobody to tell.
                tracing::debug!(%client, %cause, "a captured connection has no original destination");
                return None;
            }
        };
        if is_own_port(original.port()) {
            let why = "attempted recursive call to ourselves";
            self.refuse(&socket, client, original, Refusal::RecursiveCall, why);
            return None;
        }
        let downstream = Downstream::enter(&pod, client, original);
        Some(Caller { pod, socket, client, original, at, downstream })
    }

    fn refuse(&self, socket: &StdStream, client: ClientAddr, dst: OriginalDst, kind: Refusal, why: &str) {
        early_deny(&self.hands.shard, Reporter::Destination, client, dst.addr(), kind, &why);
        reset_on_close(socket);
    }

    /// One plaintext connection, on the worker that owns it.
    async fn plaintext(self: Rc<Self>, caller: Caller, placing: Carried) {
        let Some(begun) = Box::pin(self.begin_plaintext(caller, placing)).await else { return };
        begun.carrying.await;
    }

    /// From accept to the open. `None` when it was refused, and everybody has been told.
    async fn begin_plaintext(&self, caller: Caller, placing: Carried) -> Option<Begun> {
        let carried = self.hands.placement.carry(self.hands.worker);
        drop(placing);
        let local = match self.hands.workload(&caller.pod).await {
            Ok(local) => local,
            Err(why) => {
                let Caller { socket, client, original, .. } = &caller;
                self.refuse(socket, *client, *original, Refusal::UnknownWorkload, &why);
                return None;
            }
        };
        let mut timeline = Timeline::new(caller.at);
        timeline.stamp(Stage::Resolved, Instant::now());
        let record = Record::open(&self.hands.shard, timeline, self.plaintext_parties(&caller, &local));
        let target = TargetAddr::new(caller.original.addr());
        let facts = Facts { source: None, client: caller.client, target };
        self.hands.policies(&caller.pod).await;
        let subject = Subject { pod: caller.pod.clone(), local: local.clone(), facts, asked: None };
        let admitted = match self.admit(subject, &record) {
            Ok(admitted) => admitted,
            Err(denied) => {
                drop(caller);
                record.close(&denied);
                return None;
            }
        };
        let upstream = tokio::select! {
            upstream = self.dial(&admitted) => upstream.map_err(|cause| Outcome::of_dial(cause.into_io())),
            cut = admitted.revoked() => Err(cut_short(cut)),
        };
        let upstream = match upstream {
            Ok(upstream) => upstream,
            Err(outcome) => {
                drop(caller);
                record.close(&outcome);
                return None;
            }
        };
        record.stamp(Stage::Connect);
        let meter = record.meter();
        let Caller { socket, downstream: port, .. } = caller;
        let downstream = match TcpStream::from_std(socket.answer()) {
            Ok(downstream) => downstream,
            Err(cause) => {
                record.close(&Outcome::Broken { direction: Direction::Receive, cause: Some(cause) });
                return None;
            }
        };
        let mut relaying = Box::pin(relay(downstream, upstream, meter, Share::of(&admitted.pod().uid)));
        let way = move |cx: &mut Context<'_>| {
            let polled = relaying.as_mut().poll(cx).map(Outcome::from);
            // Captured, and so dropped, after the sockets: until they are closed the port is in use.
            let _until_then = &port;
            polled
        };
        Some(Begun { carrying: carrying(record, admitted, way), _carried: carried })
    }

    fn plaintext_parties(&self, caller: &Caller, local: &Workload) -> Parties {
        let mesh = self.hands.mesh.load();
        let source = mesh.workload_at(&self.config.network, caller.client.ip());
        let service = mesh.guess_service(local, None, caller.original.port());
        Parties {
            reporter: Reporter::Destination,
            client: caller.client,
            // Whatever the mesh says of that address, a plaintext caller has proven nothing.
            source: source
                .map_or_else(Peer::unknown, |workload| Peer { identity: None, ..peer_of(workload) }),
            destination: peer_of(local),
            dst_addr: caller.original.addr(),
            hbone_addr: None,
            service: service.map(|service| labels_of_service(service)),
            security: Security::Unknown,
        }
    }
}
