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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::testing::{Mesh, mesh, service_key, uid};

    const POD: &str = "10.0.1.9";

    /// A workload `cart` behind the services `cart` (80 → 8080) and `named` (80, which this endpoint serves on 9090),
    /// beside one that is not its own.
    fn shop() -> Mesh {
        mesh()
            .service("cart", "10.96.0.1:80")
            .ports(&[(80, 8080), (81, 15008)])
            .service("named", "10.96.0.2:80")
            .ports(&[(80, 0)])
            .service("other", "10.96.0.3:80")
            .service("secret", "10.96.0.4:80")
            .in_namespace("elsewhere")
            .private()
            .workload("cart", POD)
            .member_of("cart")
            .member_at("named", &[(80, 9090)])
    }

    fn asked(mesh: Mesh, authority: Authority) -> Result<Target, NoTarget> {
        let mesh = mesh.snapshot();
        let local = mesh.workload(&uid("cart")).expect("described above");
        target(&authority, POD.parse().unwrap(), local, &mesh)
    }

    fn addr(text: &str) -> Authority {
        Authority::Addr(text.parse().unwrap())
    }

    fn host(service: &str, port: u16) -> Authority {
        Authority::Host(service_key(service).hostname.to_string(), port)
    }

    #[test]
    fn the_pods_own_address_and_its_services_names_lead_to_it() {
        for (authority, to, service) in [
            (addr("10.0.1.9:8080"), "10.0.1.9:8080", None),
            (addr("10.0.1.9:15020"), "10.0.1.9:15020", None),
            (host("cart", 80), "10.0.1.9:8080", Some("cart")),
            (host("named", 80), "10.0.1.9:9090", Some("named")),
        ] {
            let found = asked(shop(), authority.clone()).unwrap();
            assert_eq!(found.addr.addr(), to.parse().unwrap(), "{authority}");
            assert_eq!(
                found.service.map(|service| service.key.clone()),
                service.map(service_key),
                "{authority}"
            );
        }
    }

    #[test]
    fn whatever_else_is_asked_for_is_refused_with_the_status_of_the_reference() {
        for (authority, status, why) in [
            (addr("10.0.1.8:8080"), 400, "ip mismatch: 10.0.1.9 != 10.0.1.8:8080"),
            (addr("127.0.0.1:8080"), 400, "ip mismatch: 10.0.1.9 != 127.0.0.1:8080"),
            // A service's address is for its waypoint, even where this pod stands behind it.
            (addr("10.96.0.1:80"), 400, "ip mismatch: 10.0.1.9 != 10.96.0.1:80"),
            (addr("10.0.1.9:15001"), 503, "attempted recursive call to ourselves"),
            (addr("10.0.1.9:15006"), 503, "attempted recursive call to ourselves"),
            (addr("10.0.1.9:15008"), 503, "attempted recursive call to ourselves"),
            (host("cart", 81), 503, "attempted recursive call to ourselves"),
            (
                host("nobody", 80),
                503,
                "no service or workload for hostname: nobody.default.svc.cluster.local",
            ),
            (
                host("secret", 80),
                503,
                "no service or workload for hostname: secret.default.svc.cluster.local",
            ),
            (
                host("cart", 82),
                503,
                "requested service cart.default.svc.cluster.local:82 found, but cannot resolve port",
            ),
            (
                host("other", 80),
                503,
                "requested service other.default.svc.cluster.local:80 found, but cannot resolve port",
            ),
        ] {
            let refused = asked(shop(), authority.clone()).unwrap_err();
            assert_eq!((refused.status().as_u16(), refused.to_string()), (status, why.into()), "{authority}");
        }
    }

    #[test]
    fn a_workload_that_wants_its_traffic_handed_over_is_never_dialled_as_if_it_did_not() {
        for authority in [addr("10.0.1.9:8080"), addr("10.0.1.8:80"), host("cart", 80)] {
            let refused = asked(shop().tunnelled_to(15088), authority).unwrap_err();
            assert_eq!(refused, NoTarget::ApplicationTunnel(uid("cart").to_string()));
            assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}
