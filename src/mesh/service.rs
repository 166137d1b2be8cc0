//! A name with virtual addresses, and the workloads that stand behind it.

use std::sync::Arc;

use ipnet::IpNet;

use super::names::{GatewayAddress, NetworkAddress, Ports, ServiceKey};
use super::workload::{Health, Workload};
use crate::identity::SpiffeId;

/// One service. Its endpoints live beside it, so that a change of endpoints does not touch it.
///
/// Source: `istio.workload.Service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and hostname.
    pub key: ServiceKey,
    /// Its short name (telemetry).
    pub name: Arc<str>,
    /// Virtual addresses; none for a headless service.
    pub vips: Box<[NetworkAddress]>,
    /// Virtual address ranges.
    pub cidr_vips: Box<[CidrVip]>,
    /// What it listens on.
    pub ports: Ports,
    /// Identities that its endpoints may show besides their own.
    pub subject_alt_names: Box<[SpiffeId]>,
    /// The waypoint in front of it.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints to draw from; where one can be drawn it replaces `waypoint`.
    pub weighted_waypoints: Box<[WeightedWaypoint]>,
    /// How endpoints are chosen; `None` is by capacity alone, among the healthy ones.
    pub load_balancer: Option<LoadBalancer>,
    /// Which families its endpoints are dialled in.
    pub ip_families: IpFamilies,
    /// Whether it is preferred among services that share a hostname or address.
    pub canonical: bool,
    /// Who sees it.
    pub visibility: Visibility,
}

impl Service {
    /// A service with this key and nothing else.
    pub fn named(key: ServiceKey) -> Self {
        Self {
            name: Arc::clone(&key.hostname),
            key,
            vips: Box::default(),
            cidr_vips: Box::default(),
            ports: Ports::default(),
            subject_alt_names: Box::default(),
            waypoint: None,
            weighted_waypoints: Box::default(),
            load_balancer: None,
            ip_families: IpFamilies::Any,
            canonical: false,
            visibility: Visibility::Public,
        }
    }

    /// Whether connections go to what the application dialled, without a choice of endpoint.
    pub fn is_passthrough(&self) -> bool {
        self.load_balancer.as_ref().is_some_and(|lb| lb.mode == LoadBalancerMode::Passthrough)
    }

    /// Whether an endpoint of this health takes connections of this service.
    pub fn accepts(&self, health: Health) -> bool {
        health == Health::Healthy
            || self.load_balancer.as_ref().is_some_and(|lb| lb.health_policy == HealthPolicy::AllowAll)
    }

    /// The waypoint that connections to this service must pass: the first weighted one that can be drawn, else
    /// the plain one. `None` means that none is configured.
    pub fn any_waypoint(&self) -> Option<&GatewayAddress> {
        let weighted = self.weighted_waypoints.iter().find(|one| one.weight > 0).map(|one| &one.gateway);
        weighted.or(self.waypoint.as_ref())
    }
}

/// A range of virtual addresses in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CidrVip {
    /// The network's name.
    pub network: Arc<str>,
    /// The range; host bits are ignored.
    pub cidr: IpNet,
}

/// One of several waypoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// Which.
    pub gateway: GatewayAddress,
    /// Its share; 0 is never drawn.
    pub weight: u32,
}

/// How a service's endpoints are chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancer {
    /// What an endpoint should have in common with the client, widest first.
    pub preferences: Box<[Scope]>,
    /// What happens when it has not.
    pub mode: LoadBalancerMode,
    /// Which endpoints count.
    pub health_policy: HealthPolicy,
}

/// One thing a client and an endpoint can have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// What preferences mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancerMode {
    /// Nothing: all endpoints are equal.
    Standard,
    /// Only endpoints that match them all.
    Strict,
    /// Those that match best, as long as there is one.
    Failover,
    /// No endpoint is chosen: dial what the application dialled.
    Passthrough,
}

/// Which endpoints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPolicy {
    /// Healthy ones.
    OnlyHealthy,
    /// All of them.
    AllowAll,
}

/// Which families a service's endpoints are dialled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamilies {
    /// The service does not say.
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Both.
    Dual,
}

/// Who sees a service. To anyone else it is as if absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Everyone.
    Public,
    /// Clients in its own namespace.
    Namespace,
}

/// One workload behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload's key.
    pub uid: Arc<str>,
    /// Where this workload differs from the service's own ports.
    pub ports: Ports,
    /// Whether it takes traffic.
    pub status: Health,
    /// The workload itself; `None` while the mesh does not know it, and then it cannot be chosen.
    pub workload: Option<Arc<Workload>>,
}

/// What stands behind one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints(Box<[Endpoint]>);

impl Endpoints {
    /// Puts `all` in order. Of several with one uid the last one counts.
    pub(super) fn new(all: Vec<Endpoint>) -> Self {
        let by_uid: std::collections::BTreeMap<_, _> =
            all.into_iter().map(|endpoint| (Arc::clone(&endpoint.uid), endpoint)).collect();
        Self(by_uid.into_values().collect())
    }

    /// The endpoint that is this workload.
    pub fn of(&self, uid: &str) -> Option<&Endpoint> {
        self.0.binary_search_by(|endpoint| (*endpoint.uid).cmp(uid)).ok().map(|at| &self.0[at])
    }

    /// All of them, ordered by uid.
    pub fn iter(&self) -> std::slice::Iter<'_, Endpoint> {
        self.0.iter()
    }
}
