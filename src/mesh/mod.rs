//! What the mesh looks like: workloads, services and endpoints as one immutable [`Snapshot`].
//!
//! Answers questions (who is at this address, which service has this virtual address, which policies bind this
//! workload) and does nothing else: no I/O, no clock, no lock. Where the facts come from is `discovery`'s
//! matter, where a connection goes next is `outbound`'s. One current snapshot exists per process; [`Publisher`]
//! replaces it whole by a pointer swap, and whoever still holds an older one keeps a consistent view of it.

mod build;
mod cidr;
mod model;
mod names;
mod publish;
mod service;
mod snapshot;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod workload;

pub use build::Builder;
pub use model::{Change, Model};
pub use names::{Destination, GatewayAddress, NetworkAddress, Ports, ServiceKey};
pub use publish::{Handle, Publisher};
pub use service::{
    CidrVip, Endpoint, Endpoints, HealthPolicy, IpFamilies, LoadBalancer, LoadBalancerMode, Scope, Service,
    Visibility, WeightedWaypoint,
};
pub(crate) use snapshot::target_port;
pub use snapshot::{Found, Snapshot, Viewer};
pub use workload::{
    ApplicationTunnel, Health, Locality, NetworkMode, Protocol, TunnelProtocol, Workload, WorkloadFields,
};
