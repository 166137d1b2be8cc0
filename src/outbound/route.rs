//! Where does a captured connection go next? A decision, pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balance::{Pick, Reach, choose, reach};
use crate::capture::{TUNNEL_PORT, is_own_port};
use crate::identity::{SpiffeError, SpiffeId};
use crate::mesh::{GatewayAddress, IpFamilies, Protocol, Service, Snapshot, Viewer, Workload};
use crate::net::OriginalDst;

/// Who dialled.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The pod's workload.
    pub workload: &'a Workload,
    /// The address the connection came from: one of the pod's own.
    pub client: IpAddr,
}

/// Where a captured connection goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Not in the mesh, or a service that wants it so: dial what the application dialled.
    Passthrough(OriginalDst),
    /// A workload that speaks no HBONE.
    Plain {
        /// What to dial.
        to: SocketAddr,
        /// Who answers there.
        workload: Arc<Workload>,
        /// The service the application dialled, if it was one.
        service: Option<Arc<Service>>,
    },
    /// One tunnel, to the workload itself.
    Tunnel(TunnelTo),
}

/// The far end of a tunnel, and what to ask of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelTo {
    /// Where the tunnel goes.
    pub to: SocketAddr,
    /// What its CONNECT names.
    pub authority: SocketAddr,
    /// The identities the far end may show: those of the service in their order, then the workload's own. Never
    /// empty.
    pub expected: Arc<[SpiffeId]>,
    /// Who takes the connection in the end.
    pub workload: Arc<Workload>,
    /// The service the application dialled, if it was one.
    pub service: Option<Arc<Service>>,
}

/// Why there is no way on. The client's connection is closed; no other socket exists yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The application dialled this proxy on its own loopback.
    #[error("attempted recursive call to ourselves")]
    RecursiveCall,
    /// The service is known and nothing that could take the connection stands behind it.
    #[error("no healthy upstream: {dst}")]
    NoHealthyUpstream {
        /// What the application dialled.
        dst: OriginalDst,
    },
    /// A workload of the mesh was there until a short while ago, and nobody has said who is there now; or what discovery said of it was not
    /// understood. Plaintext may be no way to it.
    #[error(
        "nobody knows how to reach {dst}: a workload of the mesh was there less than 10 minutes ago, or discovery's word of it was refused; \
         plaintext may be no way to it"
    )]
    Unreachable {
        /// What the application dialled.
        dst: OriginalDst,
    },
    /// Only services can be reached on other networks.
    #[error("no service for target address: {dst}")]
    NoService {
        /// What the application dialled.
        dst: OriginalDst,
    },
    /// The workload has no address to dial: none at all, none in the families of its service, or it is on
    /// another network without a gateway.
    #[error("no valid routing destination for workload: {uid}")]
    NoAddress {
        /// The workload.
        uid: Arc<str>,
    },
    /// A waypoint is configured and the mesh has nothing by that name. It is never passed by.
    #[error("unknown waypoint: waypoint {gateway} not found")]
    UnknownWaypoint {
        /// The waypoint's name or address.
        gateway: String,
    },
    /// The other network's gateway is named and the mesh has nothing by that name.
    #[error("unknown network gateway: network gateway {gateway} not found")]
    UnknownGateway {
        /// The gateway's name or address.
        gateway: String,
    },
    /// A waypoint is configured. It is never passed by, and this version hands nothing over to one.
    #[error(
        "waypoint {gateway} stands before {dst}, and this version hands no connection to a waypoint; take the \
         waypoint off, or let another proxy serve this node"
    )]
    WaypointUnsupported {
        /// The waypoint's name or address.
        gateway: String,
        /// What the application dialled.
        dst: OriginalDst,
    },
    /// The workload is on another network, which this version does not reach.
    #[error(
        "workload {uid} is on network {network:?}, and this version does not reach other networks; give the \
         service an endpoint on this one"
    )]
    GatewayUnsupported {
        /// The workload.
        uid: Arc<str>,
        /// Its network.
        network: Arc<str>,
    },
    /// The workload has a hostname and no address, and this version resolves none.
    #[error(
        "workload {uid} has no address but {hostname:?}, and this version resolves no hostnames; list its IPs"
    )]
    HostnameUnsupported {
        /// The workload.
        uid: Arc<str>,
        /// Its hostname.
        hostname: Arc<str>,
    },
    /// The workload speaks HBONE and could never prove who it is.
    #[error("workload {uid} has no valid identity: {cause}")]
    InvalidIdentity {
        /// The workload.
        uid: Arc<str>,
        /// What is wrong with it.
        cause: SpiffeError,
    },
}

/// Chooses the route from facts alone: no I/O, no clock, no lock; `pick` supplies the chance.
///
/// `network` is this proxy's own. `tried` holds the uids of endpoints that already failed this connection: they
/// are left out when the application dialled a service, and count for nothing when it dialled a workload's own
/// address, where nobody else can answer.
///
/// A workload that speaks HBONE is never routed to in plaintext, and a waypoint that is configured is never
/// passed by; what this version cannot carry that way it refuses.
///
/// # Errors
/// [`NoRoute`]: why there is no way on. Asking again helps only with another snapshot or a shorter `tried`.
pub fn route(
    source: &Source<'_>,
    dst: OriginalDst,
    network: &str,
    mesh: &Snapshot,
    pick: &mut impl Pick,
    tried: &[Arc<str>],
) -> Result<Route, NoRoute> {
    if dst.ip().is_loopback() && is_own_port(dst.port()) {
        return Err(NoRoute::RecursiveCall);
    }
    let from = source.workload;
    let viewer = Viewer::In(&from.namespace);
    // The two are the same network unless the control plane and this proxy's settings disagree; then neither may
    // hide what the other knows.
    let networks = [network, &from.network];
    let service = networks.iter().find_map(|network| mesh.service_at(network, dst.ip(), viewer));
    let workload = networks.iter().find_map(|network| mesh.workload_at(network, dst.ip()));
    if let Some(waypoint) = service.and_then(|service| service.any_waypoint()) {
        return Err(waypoint_before(waypoint, dst, mesh, viewer));
    }
    // An address may be a service's and a workload's. The service takes the connection then, and what guards the
    // workload guards it still.
    match (service, workload) {
        (None, None) if networks.iter().any(|network| mesh.is_unreachable(network, dst.ip())) => {
            Err(NoRoute::Unreachable { dst })
        }
        (None, None) => Ok(Route::Passthrough(dst)),
        (None, Some(workload)) => to_workload(source, dst, workload, mesh),
        (Some(service), owner) => {
            if let Some(owner) = owner {
                refuse_waypoint(source, dst, owner, mesh)?;
            }
            match owner {
                _ if !service.is_passthrough() => to_service(source, dst, service, mesh, pick, tried),
                Some(owner) if owner.protocol == Protocol::Hbone => to_workload(source, dst, owner, mesh),
                _ => Ok(Route::Passthrough(dst)),
            }
        }
    }
}

/// The application dialled a service.
fn to_service(
    source: &Source<'_>,
    dst: OriginalDst,
    service: &Arc<Service>,
    mesh: &Snapshot,
    pick: &mut impl Pick,
    tried: &[Arc<str>],
) -> Result<Route, NoRoute> {
    let from = source.workload;
    let endpoints = mesh.endpoints(&service.key);
    let chosen =
        choose(from, dst, service, endpoints, pick, tried).ok_or(NoRoute::NoHealthyUpstream { dst })?;
    let workload = chosen.workload;
    match chosen.reach {
        Reach::At(ip) => direct(workload, SocketAddr::new(ip, chosen.port), Some(service)),
        elsewhere => Err(unreachable(workload, elsewhere, mesh, Viewer::In(&from.namespace))),
    }
}

/// The application dialled a workload's own address.
fn to_workload(
    source: &Source<'_>,
    dst: OriginalDst,
    workload: &Arc<Workload>,
    mesh: &Snapshot,
) -> Result<Route, NoRoute> {
    if workload.network != source.workload.network {
        return Err(NoRoute::NoService { dst });
    }
    refuse_waypoint(source, dst, workload, mesh)?;
    match reach(source.workload, workload, dst.addr(), IpFamilies::Any) {
        Reach::At(ip) => direct(workload, SocketAddr::new(ip, dst.port()), None),
        elsewhere => Err(unreachable(workload, elsewhere, mesh, Viewer::In(&source.workload.namespace))),
    }
}

/// Straight to `target`, an address of `workload`, the way it speaks.
fn direct(
    workload: &Arc<Workload>,
    target: SocketAddr,
    service: Option<&Arc<Service>>,
) -> Result<Route, NoRoute> {
    let (workload, service) = (Arc::clone(workload), service.cloned());
    match workload.protocol {
        Protocol::Tcp => Ok(Route::Plain { to: target, workload, service }),
        Protocol::Hbone => Ok(Route::Tunnel(TunnelTo {
            to: SocketAddr::new(target.ip(), TUNNEL_PORT),
            authority: target,
            expected: expected(&workload, service.as_deref())?,
            workload,
            service,
        })),
    }
}

/// Whom the far end may be: what the service says, then the workload itself.
fn expected(workload: &Workload, service: Option<&Service>) -> Result<Arc<[SpiffeId]>, NoRoute> {
    let invalid = |cause| NoRoute::InvalidIdentity { uid: Arc::clone(&workload.uid), cause };
    let own = workload.accepted().map_err(invalid)?;
    match service.map_or(&[][..], |service| &service.subject_alt_names) {
        [] => Ok(Arc::clone(own)),
        more => Ok(more.iter().chain(own.iter().filter(|id| !more.contains(id))).cloned().collect()),
    }
}

/// Refuses to pass by a waypoint of `workload`, unless the source is that waypoint.
fn refuse_waypoint(
    source: &Source<'_>,
    dst: OriginalDst,
    workload: &Workload,
    mesh: &Snapshot,
) -> Result<(), NoRoute> {
    let Some(waypoint) = &workload.waypoint else { return Ok(()) };
    // An identity nobody can prove is no waypoint's.
    if source.workload.identity().is_ok_and(|id| mesh.is_instance(waypoint, id, source.client)) {
        return Ok(());
    }
    Err(waypoint_before(waypoint, dst, mesh, Viewer::In(&source.workload.namespace)))
}

fn waypoint_before(
    waypoint: &GatewayAddress,
    dst: OriginalDst,
    mesh: &Snapshot,
    viewer: Viewer<'_>,
) -> NoRoute {
    let gateway = waypoint.to_string();
    match mesh.gateway(waypoint, viewer) {
        Some(_) => NoRoute::WaypointUnsupported { gateway, dst },
        None => NoRoute::UnknownWaypoint { gateway },
    }
}

/// Why a workload without an address of its own cannot be dialled.
fn unreachable(workload: &Workload, reach: Reach, mesh: &Snapshot, viewer: Viewer<'_>) -> NoRoute {
    let uid = Arc::clone(&workload.uid);
    match (reach, &workload.network_gateway) {
        (Reach::ByHostname, _) => {
            NoRoute::HostnameUnsupported { uid, hostname: Arc::clone(&workload.hostname) }
        }
        (Reach::ThroughGateway, Some(gateway)) if mesh.gateway(gateway, viewer).is_none() => {
            NoRoute::UnknownGateway { gateway: gateway.to_string() }
        }
        (Reach::ThroughGateway, Some(_)) => {
            NoRoute::GatewayUnsupported { uid, network: Arc::clone(&workload.network) }
        }
        _ => NoRoute::NoAddress { uid },
    }
}

#[cfg(test)]
mod tests;
