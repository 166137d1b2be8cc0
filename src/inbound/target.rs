//! Which address in the pod does a CONNECT mean? A decision, pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;

use super::request::Authority;
use crate::capture::is_own_port;
use crate::mesh::{Service, Snapshot, Viewer, Workload};
use crate::net::TargetAddr;

/// What is dialled in the pod, and the service it was asked for as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The pod's own address, as the tunnel reached it, and the application's port.
    pub addr: TargetAddr,
    /// The service that the authority named.
    pub service: Option<Arc<Service>>,
}

/// Why a CONNECT leads nowhere in this pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    /// The authority is another address than the pod's.
    #[error("ip mismatch: {pod} != {asked}")]
    Mismatch {
        /// The address the tunnel came to.
        pod: IpAddr,
        /// What the authority names.
        asked: SocketAddr,
    },
    /// No such service.
    #[error("no service or workload for hostname: {0}")]
    UnknownHost(String),
    /// The workload is no endpoint of that service, or the service has no such port.
    #[error("requested service {0}:{1} found, but cannot resolve port")]
    NoPort(String, u16),
    /// One of the proxy's own ports.
    #[error("attempted recursive call to ourselves")]
    Recursive,
    /// A waypoint that wants its traffic handed over in a way this version has not.
    #[error(
        "workload {0} takes its traffic through an application tunnel, which this version does not serve"
    )]
    ApplicationTunnel(String),
}

impl NoTarget {
    /// How the peer is told.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Mismatch { .. } => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Finds the target of a CONNECT that came to `pod`, an address of `local`.
///
/// The authority's address is only compared, never dialled: whatever a peer asks for, the connection ends in the
/// pod its tunnel came to.
pub fn target(
    authority: &Authority,
    pod: IpAddr,
    local: &Workload,
    mesh: &Snapshot,
) -> Result<Target, NoTarget> {
    if local.application_tunnel.is_some() {
        return Err(NoTarget::ApplicationTunnel(local.uid.to_string()));
    }
    let (port, service) = match authority {
        Authority::Addr(asked) if asked.ip() == pod => (asked.port(), None),
        Authority::Addr(asked) => return Err(NoTarget::Mismatch { pod, asked: *asked }),
        Authority::Host(host, port) => {
            let service = mesh
                .service_by_hostname(host, Viewer::In(&local.namespace))
                .ok_or_else(|| NoTarget::UnknownHost(host.clone()))?;
            // A hostname leads to the service's own endpoints and nobody else.
            let target = (mesh.endpoints(&service.key).of(&local.uid))
                .and_then(|_| mesh.target_port(local, service, *port))
                .ok_or_else(|| NoTarget::NoPort(host.clone(), *port))?;
            (target, Some(service.clone()))
        }
    };
    if is_own_port(port) {
        return Err(NoTarget::Recursive);
    }
    Ok(Target { addr: TargetAddr::new(SocketAddr::new(pod, port)), service })
}
